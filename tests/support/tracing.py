"""What a function would hold in memory, read off its jaxpr; and what users' programs compute."""

import jax


def largest_intermediate(function, *arguments, platform="cpu"):
    """Number of elements of the largest array that any equation computes, at any depth.

    Scan outputs stacked over iterations count too; inputs do not, nor what is for other platforms.
    """
    return max(
        variable.aval.size
        for jaxpr in _nested(jax.make_jaxpr(function)(*arguments).jaxpr, platform)
        for equation in jaxpr.eqns
        for variable in equation.outvars
    )


def optimized(function, *arguments):
    """The result of a program compiled as users' are: `make test` has nothing optimized."""
    options = {"xla_backend_optimization_level": 3}
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


def _nested(jaxpr, platform):
    yield jaxpr
    for equation in jaxpr.eqns:
        params = dict(equation.params)
        platforms = params.get("branches_platforms")
        if platforms is not None:
            own = next(at for at, names in enumerate(platforms) if not names or platform in names)
            params["branches"] = params["branches"][own]
        for value in params.values():
            for item in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from _nested(inner, platform)
