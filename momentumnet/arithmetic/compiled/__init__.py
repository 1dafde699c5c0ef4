"""The compiled kernels of csrc: libraries found and loaded, registered as operators, chosen for a device."""
