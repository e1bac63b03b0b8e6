"""What a function would hold in memory, read off its jaxpr; and what users' programs compute."""

import jax


def largest_intermediate(function, *arguments):
    """Number of elements of the largest array that any equation computes, at any depth.

    Scan outputs stacked over iterations count too; inputs do not.
    """
    return max(
        variable.aval.size
        for jaxpr in _nested(jax.make_jaxpr(function)(*arguments).jaxpr)
        for equation in jaxpr.eqns
        for variable in equation.outvars
    )


def optimized(function, *arguments):
    """The result of a program compiled as users' are: `make test` has nothing optimized."""
    options = {"xla_backend_optimization_level": 3}
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


def _nested(jaxpr):
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from _nested(inner)
