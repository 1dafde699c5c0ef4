// A CUDA driver without a device (libcuda.so.1), for a machine that has none.
//
// PyTorch asks the driver whether there is a device, and for contexts; all else goes through the runtime (runtime.c).

#include <stddef.h>

int cuInit(unsigned flags) { return 0; }

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}

int cuDeviceGetCount(int* count) {
    *count = 1;
    return 0;
}

int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    *flags = 0;
    *active = 1;
    return 0;
}

int cuCtxGetCurrent(void** context) {
    static int only;
    *context = &only;
    return 0;
}

int cuGetErrorString(int error, const char** text) {
    *text = "the hollow device has no such function";
    return 0;
}
