// The namespace of the operators: INVOLUTION_NAMESPACE if the command line defines it, otherwise the name of the
// library, as kernel-builder expects.
#pragma once

#ifndef INVOLUTION_NAMESPACE
#define INVOLUTION_NAMESPACE TORCH_EXTENSION_NAME
#endif

// Two steps, because TORCH_LIBRARY_IMPL and STABLE_TORCH_LIBRARY_IMPL do not expand macros in their arguments.
#define INVOLUTION_EXPAND(MACRO, ...) MACRO(__VA_ARGS__)
