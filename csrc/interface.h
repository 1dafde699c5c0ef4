// The C interface of both libraries: what Python hands over, and what it expects to be there.
#pragma once
#include <stdint.h>

// Changed whenever anything below changes; Python refuses a library with another number (arithmetic/compiled/libraries.py).
#define MN_ABI 9

#if defined(_WIN32)
#define MN_EXPORT extern "C" __declspec(dllexport)
#else
#define MN_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Element types of branches and positions.
enum : int32_t { MN_NO_SKIP = -1, MN_FLOAT32 = 0, MN_BFLOAT16 = 1, MN_FLOAT16 = 2, MN_FLOAT64 = 3 };

// The constants of one step, see fixed_point.Digits. Nothing in here depends on the tensors' data.
struct MnPlan {
    int64_t n, d, previous_bound, bound, next_bound, offset;
    int64_t exponent;        // a value is integer * 2^-exponent
    double factor;           // weight * 2^exponent
    int32_t word_bits;       // 24, 32 or 64: the integers of x and v
    int32_t store_bits;      // 16, 32 or 64: those of s. With words of 24 bits all three lie in two words of 32 (planes.h)
    int32_t y_dtype;
    int32_t skip_dtype;      // type in which the block saw x, where y = x + f; MN_NO_SKIP where y is the branch f
    int32_t position_dtype;
    int32_t ahead;           // whether an undo takes x on to the input of the block before
};

// The tensors of one step, each with as many elements; null where an operation does not use one.
struct MnTensors {
    void* x;
    void* v;
    void* s;
    const void* y;
    void* position;
    uint8_t* spilled;        // low bytes of s, where a step puts them aside
    void* report;            // two words: magnitude bits, checksum
};

// What integers are packed from: int32, a store of 16 bits, or x, v and s where all three lie in two words.
enum : int32_t { MN_WHOLE = 0, MN_SHORT_STORE = 1, MN_JOINT_X = 2, MN_JOINT_V = 3, MN_JOINT_STORE = 4 };

// The low bits of an int32 that are kept: 1 to 32, the top one being its sign where it is signed.
struct MnField {
    int32_t width, is_signed, plane;
};

// The constants of a step's adjoint, and the types of its gradients: `dtype` for all but those of v. Both are the same, or
// those of v are float32 beside a half type.
struct MnAdjoint {
    double gamma, weight;
    int32_t dtype, velocity_dtype;
};

// Elements of a few pieces of memory: of each `count`, every `stride`-th, 1, 2, 4 or 8 bytes wide.
enum : int32_t { MN_PIECES = 16 };
// More elements are looked at by several blocks of a GPU, whose report is zero when it is handed over.
enum : int32_t { MN_LOOK_ALONE = 1 << 14 };
struct MnLook {
    const void* data[MN_PIECES];
    int64_t stride[MN_PIECES];
    int32_t count[MN_PIECES], bytes[MN_PIECES];
};

// Both libraries export these. They return 0, or an error that mn_error explains.
//   where:  the number of threads on the CPU, the index of the device on CUDA
//   stream: the CUDA stream; unused on the CPU
// A position may be null in mn_undo and mn_rewind, mn_rewind goes by previous_bound; a grad_position may be null; grad_velocity
// may be grad_v. A report is zero when it is handed over. What is packed lies in `first`, a joint v in `second`, too;
// unpacking one of three that are joint leaves the others as they are.
//
// mn_start makes a state of floats y, v and s being 0; mn_position writes a state's x as floats, and mn_output x + factor v,
// rounded one after the other. mn_reach ORs the bits up to the highest one of each integer's magnitude
// into the report's word, and the top bit where an integer is negative. mn_look writes 0 and the checksum of the elements of
// `size` pieces to the report, whatever that was if they are no more than MN_LOOK_ALONE.
MN_EXPORT int32_t mn_abi(void);
MN_EXPORT const char* mn_error(int32_t status);
MN_EXPORT int32_t mn_step(const MnPlan* plan, int64_t size, int32_t where, void* stream, void* x, void* v, void* s,
                          const void* y, void* position, uint8_t* spilled, void* report);
MN_EXPORT int32_t mn_undo(const MnPlan* plan, int64_t size, int32_t where, void* stream, void* x, void* v, void* s,
                          const void* y, void* position, uint8_t* spilled, void* report);
MN_EXPORT int32_t mn_rewind(const MnPlan* plan, int64_t size, int32_t where, void* stream, void* x, void* v, void* s,
                            void* position);
MN_EXPORT int32_t mn_checksum(const MnPlan* plan, int64_t size, int32_t where, void* stream, void* x, void* v, void* s,
                              void* report);
MN_EXPORT int32_t mn_start(const MnPlan* plan, int64_t size, int32_t where, void* stream, void* x, void* v, void* s,
                           const void* y);
MN_EXPORT int32_t mn_position(const MnPlan* plan, int64_t size, int32_t where, void* stream, void* x, void* position);
MN_EXPORT int32_t mn_output(const MnPlan* plan, int64_t size, int32_t where, void* stream, void* x, void* v, void* position);
MN_EXPORT int32_t mn_reach(const MnField* field, int64_t size, int32_t where, void* stream, uint32_t* first,
                           uint32_t* second, uint32_t* report);
MN_EXPORT int32_t mn_pack(const MnField* field, int64_t size, int32_t where, void* stream, uint32_t* first,
                          uint32_t* second, uint32_t* words);
MN_EXPORT int32_t mn_unpack(const MnField* field, int64_t size, int32_t where, void* stream, uint32_t* first,
                            uint32_t* second, uint32_t* words);
MN_EXPORT int32_t mn_adjoint(const MnAdjoint* adjoint, int64_t size, int32_t where, void* stream, const void* grad_x,
                             const void* grad_v, void* grad_branch, void* grad_velocity, void* grad_position);
MN_EXPORT int32_t mn_look(const MnLook* look, int64_t size, int32_t where, void* stream, int64_t* report);
