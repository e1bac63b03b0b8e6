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


def steps(function, *arguments, platform="cpu"):
    """How often the loop over tiles runs, on a platform: the one that runs most."""
    return _steps(jax.make_jaxpr(function)(*arguments).jaxpr, platform)


def _nested(jaxpr, platform):
    yield jaxpr
    for equation in jaxpr.eqns:
        for inner in _inner(equation, platform):
            yield from _nested(inner, platform)


def _inner(equation, platform):
    """The jaxprs in an equation; of a choice by platform the one for this platform."""
    params = dict(equation.params)
    platforms = params.get("branches_platforms")
    if platforms is not None:
        own = next(at for at, names in enumerate(platforms) if not names or platform in names)
        params["branches"] = (params["branches"][own],)
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else [value]:
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def _steps(jaxpr, platform):
    most = 0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [_steps(inner, platform) for inner in _inner(equation, platform)]
        most = max(most, times * max(inner, default=0))
        if equation.primitive.name == "dot_general":
            most = max(most, int(equation.outvars[0].aval.size >= 2**19))
    return most
