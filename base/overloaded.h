// A visitor made of lambdas, one for each alternative of a variant.
#pragma once

namespace vmbusd {

template <typename... Handlers>
struct Overloaded : Handlers... {
  using Handlers::operator()...;
};
template <typename... Handlers>
Overloaded(Handlers...) -> Overloaded<Handlers...>;

}  // namespace vmbusd
