// Makes the library a Python module, which is how kernel-builder's `_ops.py` loads it. There is nothing to register here:
// loading it registers the implementations (csrc/library.h), and ops.py has the schemas.

#include "registration.h"  // kernel-builder's

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
