// The CUDA library: the same operations, four elements to a thread at a time (packing: a column of a block), on the stream of the
// caller and without waiting.
#include "cuda_adjoint.h"
#include "cuda_look.h"
#include "cuda_packing.h"
#include "cuda_sums.h"
#include "step.h"

namespace {

// What a kernel is told besides the constants; the types are the same for all threads, so that branching on them is free.
struct Launch {
    MnTensors tensors;
    int64_t size, groups;  // groups: of four elements that can be accessed at once; the rest goes one by one
    int32_t y_dtype, skip_dtype, position_dtype;
    bool ahead;
};

// Loaded is double where y or x may be float64, else float.
template <class Loaded>
__device__ __forceinline__ void load_group(int32_t dtype, const void* data, int64_t group, Loaded values[4]) {
    if (dtype == MN_FLOAT32) {
        const Four<float> raw = four<float>(data, group);
        for (int lane = 0; lane < 4; ++lane) values[lane] = raw.at[lane];
    } else if (dtype == MN_FLOAT64) {
        const Four<double> raw = four<double>(data, group);
        for (int lane = 0; lane < 4; ++lane) values[lane] = Loaded(raw.at[lane]);
    } else {
        const Four<uint16_t> raw = four<uint16_t>(data, group);
        for (int lane = 0; lane < 4; ++lane) {
            values[lane] = dtype == MN_BFLOAT16 ? from_bfloat16(raw.at[lane]) : from_float16(raw.at[lane]);
        }
    }
}

template <class Float>
__device__ __forceinline__ void store_group(int32_t dtype, void* data, int64_t group, const Float values[4]) {
    if (dtype == MN_FLOAT32) {
        Four<float> raw;
        for (int lane = 0; lane < 4; ++lane) raw.at[lane] = float(values[lane]);
        four<float>(data, group) = raw;
    } else if (dtype == MN_FLOAT64) {
        Four<double> raw;
        for (int lane = 0; lane < 4; ++lane) raw.at[lane] = double(values[lane]);
        four<double>(data, group) = raw;
    } else {
        Four<uint16_t> raw;
        for (int lane = 0; lane < 4; ++lane) {
            const float value = float(values[lane]);
            raw.at[lane] = dtype == MN_BFLOAT16 ? to_bfloat16(value) : to_float16(value);
        }
        four<uint16_t>(data, group) = raw;
    }
}

// The operations at one element. Each says what it reads and writes; `run` below moves the data. This one reads all of an
// element and writes nothing.
template <class Word, class Loaded>
struct Operation {
    static constexpr bool reads_x = true, reads_velocity = true, has_branch = false, writes_velocity = false, has_report = false;

    __device__ static bool moves_x(const Launch&) { return false; }
    __device__ static bool has_position(const Launch& launch) { return launch.tensors.position; }
    __device__ static void apply(Element<Word>&, Loaded, uint8_t&, int64_t, Sums<Word>&, const Launch&, const Constants<Word>&) {}
    __device__ static typename Word::Float position(const Element<Word>& e, const Constants<Word>& c) {
        return Arithmetic<Word>::to_float(e.x, c.scale);
    }
};

template <class Word, class Loaded>
struct Step : Operation<Word, Loaded> {
    static constexpr bool has_branch = true, writes_velocity = true, has_report = true;

    __device__ static bool moves_x(const Launch&) { return true; }
    __device__ static void apply(Element<Word>& e, Loaded y, uint8_t& byte, int64_t i, Sums<Word>& sums, const Launch& launch,
                                 const Constants<Word>& c) {
        using M = Momentum<Word>;
        const bool wide = launch.y_dtype == MN_FLOAT64 || launch.skip_dtype == MN_FLOAT64;
        const auto branch = branch_of(y, launch.skip_dtype, wide, M::to_float(e.x, c.scale)) * c.factor;
        if (launch.tensors.spilled) byte = uint8_t(M::template step<true>(e, branch, sums.magnitudes, c));
        else M::template step<false>(e, branch, sums.magnitudes, c);
        sums.add(e, i);
    }
};

template <class Word, class Loaded>
struct Undo : Operation<Word, Loaded> {
    static constexpr bool has_branch = true, writes_velocity = true, has_report = true;

    __device__ static bool moves_x(const Launch& launch) { return launch.ahead; }
    __device__ static bool has_position(const Launch& launch) { return launch.ahead && launch.tensors.position; }
    __device__ static void apply(Element<Word>& e, Loaded y, uint8_t& byte, int64_t i, Sums<Word>& sums, const Launch& launch,
                                 const Constants<Word>& c) {
        using M = Momentum<Word>;
        const bool wide = launch.y_dtype == MN_FLOAT64 || launch.skip_dtype == MN_FLOAT64;
        const auto branch = branch_of(y, launch.skip_dtype, wide, M::to_float(e.x, c.scale)) * c.factor;
        if (launch.tensors.spilled) M::template undo<true>(e, branch, byte, c);
        else M::template undo<false>(e, branch, byte, c);
        sums.add(e, i);
        if (launch.ahead) M::rewind(e, c);
    }
};

template <class Word, class Loaded>
struct Rewind : Operation<Word, Loaded> {
    __device__ static bool moves_x(const Launch&) { return true; }
    __device__ static void apply(Element<Word>& e, Loaded, uint8_t&, int64_t, Sums<Word>&, const Launch&,
                                 const Constants<Word>& c) {
        Momentum<Word>::rewind(e, c);
    }
};

template <class Word, class Loaded>
struct Checksum : Operation<Word, Loaded> {
    static constexpr bool has_report = true;

    __device__ static void apply(Element<Word>& e, Loaded, uint8_t&, int64_t i, Sums<Word>& sums, const Launch&,
                                 const Constants<Word>&) {
        sums.add(e, i);
    }
};

template <class Word, class Loaded>
struct Start : Operation<Word, Loaded> {
    static constexpr bool reads_x = false, reads_velocity = false, has_branch = true, writes_velocity = true;

    __device__ static bool moves_x(const Launch&) { return true; }
    __device__ static void apply(Element<Word>& e, Loaded y, uint8_t&, int64_t, Sums<Word>&, const Launch&,
                                 const Constants<Word>& c) {
        typename Word::Unsigned overflow = 0;  // is found beside
        e = {Arithmetic<Word>::to_fixed(typename Word::Float(y) * c.factor, overflow), 0, 0};
    }
};

template <class Word, class Loaded>
struct Position : Operation<Word, Loaded> {
    static constexpr bool reads_velocity = false;
};

template <class Word, class Loaded>
struct Output : Operation<Word, Loaded> {
    __device__ static typename Word::Float position(const Element<Word>& e, const Constants<Word>& c) {
        return Arithmetic<Word>::to_float(e.x, c.scale) + Arithmetic<Word>::to_float(e.v, c.scale) * c.factor;
    }
};

template <template <class, class> class Operation, class Word, class Loaded>
__device__ __forceinline__ void run_group(int64_t group, Sums<Word>& sums, const Launch& launch, const Constants<Word>& c) {
    using Number = typename Word::Unsigned;
    using Op = Operation<Word, Loaded>;
    const MnTensors& t = launch.tensors;
    using Store = typename Word::Store;
    Four<Number> x{}, v{};
    Four<Store> s{};
    Four<uint8_t> bytes{};
    if (Op::reads_x) x = four<Number>(t.x, group);
    if (Op::reads_velocity) v = four<Number>(t.v, group);
    if constexpr (!Word::is_joint) {
        if (Op::reads_velocity && t.s) s = four<Store>(t.s, group);
    }
    Loaded y[4] = {};
    typename Word::Float positions[4];
    if (Op::has_branch) load_group(launch.y_dtype, t.y, group, y);
    if (Op::has_branch && t.spilled) bytes = four<uint8_t>(t.spilled, group);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
        Element<Word> e = opened<Word>({x.at[lane], v.at[lane], s.at[lane]});
        Op::apply(e, y[lane], bytes.at[lane], 4 * group + lane, sums, launch, c);
        const Element<Word> kept = closed(e);
        x.at[lane] = kept.x, v.at[lane] = kept.v, s.at[lane] = Store(kept.s);
        positions[lane] = Op::position(e, c);
    }
    if (Op::writes_velocity) {
        four<Number>(t.v, group) = v;
        if constexpr (!Word::is_joint) four<Store>(t.s, group) = s;
        if (t.spilled) four<uint8_t>(t.spilled, group) = bytes;
    }
    if (Op::moves_x(launch) || (Op::writes_velocity && Word::is_joint)) four<Number>(t.x, group) = x;
    if (Op::has_position(launch)) store_group(launch.position_dtype, t.position, group, positions);
}

template <template <class, class> class Operation, class Word, class Loaded>
__device__ __forceinline__ void run_element(int64_t i, Sums<Word>& sums, const Launch& launch, const Constants<Word>& c) {
    using Number = typename Word::Unsigned;
    using Op = Operation<Word, Loaded>;
    const MnTensors& t = launch.tensors;
    Element<Word> read{};
    if (Op::reads_x) read.x = static_cast<const Number*>(t.x)[i];
    if (Op::reads_velocity) read.v = static_cast<const Number*>(t.v)[i];
    if constexpr (!Word::is_joint) {
        if (Op::reads_velocity && t.s) read.s = static_cast<const typename Word::Store*>(t.s)[i];
    }
    Element<Word> e = opened(read);
    uint8_t byte = Op::has_branch && t.spilled ? t.spilled[i] : 0;
    Loaded y = 0;
    if (Op::has_branch) y = sizeof(Loaded) == 8 ? Loaded(load_double(launch.y_dtype, t.y, i)) : load_float(launch.y_dtype, t.y, i);
    Op::apply(e, y, byte, i, sums, launch, c);
    const Element<Word> kept = closed(e);
    if (Op::writes_velocity) {
        static_cast<Number*>(t.v)[i] = kept.v;
        if constexpr (!Word::is_joint) static_cast<typename Word::Store*>(t.s)[i] = typename Word::Store(kept.s);
        if (t.spilled) t.spilled[i] = byte;
    }
    if (Op::moves_x(launch) || (Op::writes_velocity && Word::is_joint)) static_cast<Number*>(t.x)[i] = kept.x;
    if (Op::has_position(launch)) store(launch.position_dtype, t.position, i, Op::position(e, c));
}

template <template <class, class> class Operation, class Word, class Loaded>
__global__ void __launch_bounds__(THREADS) kernel(const __grid_constant__ Launch launch, const __grid_constant__ Constants<Word> c) {
    Sums<Word> sums;
    const int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x, stride = int64_t(gridDim.x) * THREADS;
    for (int64_t group = first; group < launch.groups; group += stride) {
        run_group<Operation, Word, Loaded>(group, sums, launch, c);
    }
    for (int64_t i = 4 * launch.groups + first; i < launch.size; i += stride) {
        run_element<Operation, Word, Loaded>(i, sums, launch, c);
    }
    if (Operation<Word, Loaded>::has_report) sums.into(launch.tensors.report);
}

// Whether every tensor may be accessed four elements at a time.
bool goes_in_groups(const MnTensors& t) {
    return is_aligned(t.x, 16) && is_aligned(t.v, 16) && is_aligned(t.s, 16) && is_aligned(t.y, 16) &&
           is_aligned(t.position, 16) && is_aligned(t.spilled, 4);
}

template <template <class, class> class Operation, class Word, class Loaded>
cudaError_t launch_as(const MnPlan& plan, const Launch& launch, int device, cudaStream_t stream) {
    return launch_grid(launch.groups ? launch.groups : launch.size, device, [&](dim3 grid) {
        kernel<Operation, Word, Loaded><<<grid, THREADS, 0, stream>>>(launch, Constants<Word>::of(plan));
    });
}

template <template <class, class> class Operation>
int32_t run(const MnPlan* plan, int64_t size, int32_t device, void* stream, const MnTensors& tensors) {
    const Device current(device);
    const auto on = static_cast<cudaStream_t>(stream);
    if (current.status != cudaSuccess || size == 0) return finished(current.status);
    const int64_t groups = goes_in_groups(tensors) ? size / 4 : 0;
    const Launch launch{tensors, size, groups, plan->y_dtype, plan->skip_dtype, plan->position_dtype, plan->ahead != 0};
    const bool wide = plan->y_dtype == MN_FLOAT64 || plan->skip_dtype == MN_FLOAT64;
    return with_word(*plan, [&](auto word) -> int32_t {
        using Word = decltype(word);
        if constexpr (Word::bits == 64) return finished(launch_as<Operation, Word, double>(*plan, launch, device, on));
        else return finished(wide ? launch_as<Operation, Word, double>(*plan, launch, device, on)
                                  : launch_as<Operation, Word, float>(*plan, launch, device, on));
    });
}

}  // namespace

int32_t mn_abi() { return MN_ABI; }

const char* mn_error(int32_t status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

// Whether this library holds code for the device, and the driver is new enough for it.
MN_EXPORT int32_t mn_probe(int32_t device) {
    const Device current(device);
    cudaFuncAttributes attributes;
    return finished(current.status == cudaSuccess ? cudaFuncGetAttributes(&attributes, kernel<Step, Word32, float>)
                                                  : current.status);
}

int32_t mn_step(const MnPlan* plan, int64_t size, int32_t device, void* stream, void* x, void* v, void* s, const void* y,
                void* position, uint8_t* spilled, void* report) {
    return run<Step>(plan, size, device, stream, {x, v, s, y, position, spilled, report});
}

int32_t mn_undo(const MnPlan* plan, int64_t size, int32_t device, void* stream, void* x, void* v, void* s, const void* y,
                void* position, uint8_t* spilled, void* report) {
    return run<Undo>(plan, size, device, stream, {x, v, s, y, position, spilled, report});
}

int32_t mn_rewind(const MnPlan* plan, int64_t size, int32_t device, void* stream, void* x, void* v, void* s, void* position) {
    return run<Rewind>(plan, size, device, stream, {x, v, s, nullptr, position, nullptr, nullptr});
}

int32_t mn_checksum(const MnPlan* plan, int64_t size, int32_t device, void* stream, void* x, void* v, void* s, void* report) {
    return run<Checksum>(plan, size, device, stream, {x, v, s, nullptr, nullptr, nullptr, report});
}

int32_t mn_start(const MnPlan* plan, int64_t size, int32_t device, void* stream, void* x, void* v, void* s, const void* y) {
    return run<Start>(plan, size, device, stream, {x, v, s, y, nullptr, nullptr, nullptr});
}

int32_t mn_position(const MnPlan* plan, int64_t size, int32_t device, void* stream, void* x, void* position) {
    return run<Position>(plan, size, device, stream, {x, nullptr, nullptr, nullptr, position, nullptr, nullptr});
}

int32_t mn_output(const MnPlan* plan, int64_t size, int32_t device, void* stream, void* x, void* v, void* position) {
    return run<Output>(plan, size, device, stream, {x, v, nullptr, nullptr, position, nullptr, nullptr});
}

int32_t mn_reach(const MnField* field, int64_t size, int32_t device, void* stream, uint32_t* first, uint32_t* second,
                 uint32_t* report) {
    return with_plane(*field, first, second, [=](auto plane) {
        return run_on(device, size, [=](dim3 grid) {
            reach<<<grid, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(size, plane, report);
        });
    });
}

int32_t mn_pack(const MnField* field, int64_t size, int32_t device, void* stream, uint32_t* first, uint32_t* second,
                uint32_t* words) {
    return with_plane(*field, first, second, [=](auto plane) {
        return run_on(device, packing_threads(size), [=](dim3 grid) {
            pack<<<grid, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(*field, size, plane, words);
        });
    });
}

int32_t mn_unpack(const MnField* field, int64_t size, int32_t device, void* stream, uint32_t* first, uint32_t* second,
                  uint32_t* words) {
    return with_plane(*field, first, second, [=](auto plane) {
        return run_on(device, packing_threads(size), [=](dim3 grid) {
            unpack<<<grid, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(*field, size, plane, words);
        });
    });
}

int32_t mn_adjoint(const MnAdjoint* constants, int64_t size, int32_t device, void* stream, const void* grad_x,
                   const void* grad_v, void* grad_branch, void* grad_velocity, void* grad_position) {
    return with_types_of(*constants, [=](auto of_x, auto of_v) {
        return run_adjoint<decltype(of_x), decltype(of_v)>(*constants, size, device, stream, grad_x, grad_v, grad_branch,
                                                           grad_velocity, grad_position);
    });
}

int32_t mn_look(const MnLook* look, int64_t pieces, int32_t device, void* stream, int64_t* report) {
    const MnLook values = *look;
    int64_t size = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) size += values.count[piece];
    return run_on(device, size > MN_LOOK_ALONE ? size : 1, [=](dim3 grid) {
        look_at_values<<<grid, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(values, int(pieces), report);
    });
}
