// The namespace of the operators: INVOLUTION_NAMESPACE if the command line defines it, otherwise the name of the
// library, as kernel-builder expects. The schemas are registered by registration.py, before or after this library is
// loaded.
#pragma once

#include <torch/library.h>

#ifndef INVOLUTION_NAMESPACE
#define INVOLUTION_NAMESPACE TORCH_EXTENSION_NAME
#endif

// Two steps, because TORCH_LIBRARY_IMPL does not expand macros in its arguments.
#define INVOLUTION_LIBRARY_IMPL(KEY, M) INVOLUTION_LIBRARY_IMPL_IN(INVOLUTION_NAMESPACE, KEY, M)
#define INVOLUTION_LIBRARY_IMPL_IN(NAMESPACE, KEY, M) TORCH_LIBRARY_IMPL(NAMESPACE, KEY, M)
