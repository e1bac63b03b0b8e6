"""An equinox training loop through soft gates, several betas at once, on all devices.

    python -m examples.equinox_loop

equinox hands over a module that is itself a pytree of arrays: gradients and updates have its form.
`XLA_FLAGS=--xla_force_host_platform_device_count=4` tries four devices.
"""

import equinox as eqx
import jax.numpy as jnp
import optax

from examples import soft_loss

OPTIMIZER = optax.adam(soft_loss.LEARNING_RATE)


class Adapter(eqx.Module):
    """Queries moved by a linear map that starts at nothing."""

    move: jnp.ndarray  # [dim, dim]

    def __call__(self, rows):
        """[n, dim] unit rows."""
        return soft_loss.unit(rows + rows @ self.move)


@eqx.filter_jit
def step(adapter: Adapter, memory, parts):
    """The adapter after one step, the optimizer's memory, and the loss before."""
    queries, gallery, bank = parts
    value, gradient = eqx.filter_value_and_grad(
        lambda model: soft_loss.loss(model(queries), gallery, model(bank))
    )(adapter)
    updates, memory = OPTIMIZER.update(gradient, memory)
    return eqx.apply_updates(adapter, updates), memory, value


def main() -> None:
    """Prints the loss before and after, and what was learned gives."""
    parts = soft_loss.pairs()
    dim = parts[0].shape[1]
    adapter, values = Adapter(jnp.zeros((dim, dim))), []
    memory = OPTIMIZER.init(adapter)
    for _ in range(soft_loss.STEPS):
        adapter, memory, value = step(adapter, memory, parts)
        values.append(float(value))
    soft_loss.report(values, adapter)


if __name__ == "__main__":
    main()
