// What lets compilers vectorise a loop: no choice in it, and no two names for one memory.
#pragma once
#include "arithmetic.h"

#if defined(_MSC_VER)
#define MN_RESTRICT __restrict
#else
#define MN_RESTRICT __restrict__
#endif

namespace {

struct Yes { static constexpr bool value = true; };
struct No { static constexpr bool value = false; };

// Calls run with a condition as a type, so that the loops below it are compiled for either case.
template <class Run>
MN_HD void decide(bool condition, Run run) {
    if (condition) run(Yes());
    else run(No());
}

}  // namespace
