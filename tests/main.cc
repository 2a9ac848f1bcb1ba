// With Catch2 2 the runner is compiled here; with Catch2 3 it comes from the library.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
