// The part of cuBLAS and cuBLASLt that a training step calls, without a device; in one library with runtime.c.
//
// A product is one kernel that does nothing (the real library may launch two, where it splits the sum). Everything else
// is accepted. Arguments are not looked at, so most functions are declared without.

#include <stdlib.h>
#include <string.h>

void hollow_launch(void);

#define ACCEPTED(name) \
    int name(void) { return 0; }
#define PRODUCT(name)    \
    int name(void) {     \
        hollow_launch(); \
        return 0;        \
    }
#define CREATED(name)                  \
    int name(void** handle) {          \
        *handle = malloc(HANDLE_SIZE); \
        return 0;                      \
    }
#define ZERO_READ(name)                  \
    int name(void* handle, int* value) { \
        *value = 0;                      \
        return 0;                        \
    }

// At least what a handle or descriptor holds that the caller may look into.
enum { HANDLE_SIZE = 64 };

CREATED(cublasCreate_v2)
ACCEPTED(cublasDestroy_v2)
ACCEPTED(cublasSetStream_v2)
ACCEPTED(cublasSetWorkspace_v2)
ACCEPTED(cublasSetMathMode)
ZERO_READ(cublasGetMathMode)
ACCEPTED(cublasSetPointerMode_v2)
ZERO_READ(cublasGetPointerMode_v2)
ACCEPTED(cublasSetSmCountTarget)

PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasDgemv_v2)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasDdot_v2)
PRODUCT(cublasDotEx)

PRODUCT(cublasLtMatmul)
CREATED(cublasLtMatmulDescCreate)
ACCEPTED(cublasLtMatmulDescDestroy)
ACCEPTED(cublasLtMatmulDescSetAttribute)
CREATED(cublasLtMatmulPreferenceCreate)
ACCEPTED(cublasLtMatmulPreferenceDestroy)
ACCEPTED(cublasLtMatmulPreferenceSetAttribute)
CREATED(cublasLtMatrixLayoutCreate)
ACCEPTED(cublasLtMatrixLayoutDestroy)
ACCEPTED(cublasLtMatrixLayoutSetAttribute)

// One algorithm, which needs no work space.
int cublasLtMatmulAlgoGetHeuristic(
    void* handle, void* operation, void* a, void* b, void* c, void* d, void* preference, int requested, void* results,
    int* found
) {
    enum { RESULT_SIZE = 96 };  // cublasLtMatmulHeuristicResult_t
    memset(results, 0, RESULT_SIZE);
    *found = 1;
    return 0;
}
