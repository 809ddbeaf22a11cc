// Makes the library a Python module, which is how the `_ops.py` of kernel-builder loads it. Nothing is registered
// here: loading the library registers the kernels (csrc/library.h), and registration.py registers the schemas.

#include "registration.h"  // kernel-builder's

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
