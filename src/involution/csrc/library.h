// Where the implementations are registered: in a namespace given on the command line, or else, as kernel-builder wants
// it, in one with the name of the library. The schemas are registered from Python, in ops.py, before or after.
#pragma once

#include <torch/library.h>

#ifndef INVOLUTION_NAMESPACE
#define INVOLUTION_NAMESPACE TORCH_EXTENSION_NAME
#endif

// Two steps, because TORCH_LIBRARY_IMPL takes its arguments as they are written, without expanding macros.
#define INVOLUTION_LIBRARY_IMPL(KEY, M) INVOLUTION_LIBRARY_IMPL_IN(INVOLUTION_NAMESPACE, KEY, M)
#define INVOLUTION_LIBRARY_IMPL_IN(NAMESPACE, KEY, M) TORCH_LIBRARY_IMPL(NAMESPACE, KEY, M)
