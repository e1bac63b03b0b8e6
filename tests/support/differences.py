"""A gradient against a difference: one direction through all arguments, three compilations."""

import jax
import jax.numpy as jnp
import numpy as np


def check_slope(function, arguments, *, step=1e-5, tolerance=1e-7):
    """Reverse mode, forward mode and a central difference along a random direction agree."""
    random = np.random.default_rng(0)
    direction = [jnp.asarray(random.normal(size=array.shape), array.dtype) for array in arguments]
    gradient = jax.jit(jax.grad(function, argnums=tuple(range(len(arguments)))))(*arguments)
    reverse = sum(float((slope * by).sum()) for slope, by in zip(gradient, direction, strict=True))
    forward = jax.jit(lambda *pair: jax.jvp(function, *pair)[1])(tuple(arguments), tuple(direction))
    function = jax.jit(function)

    def moved(distance):
        pairs = zip(arguments, direction, strict=True)
        return float(function(*(array + distance * by for array, by in pairs)))

    difference = (moved(step) - moved(-step)) / (2 * step)
    np.testing.assert_allclose([reverse, float(forward)], difference, rtol=tolerance)
