"""A flax nnx training loop through soft gates, several betas at once, on all devices.

    python -m examples.flax_loop

flax hands over a module, and `nnx.grad` its gradients: the loss is a function of arrays, so that it
needs no word about flax. `XLA_FLAGS=--xla_force_host_platform_device_count=4` tries four devices.
"""

import optax
from flax import nnx

from examples import soft_loss


class Adapter(nnx.Module):
    """Queries moved by a linear map that starts at nothing."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros_init()
        self.move = nnx.Linear(dim, dim, use_bias=False, kernel_init=zeros, rngs=rngs)

    def __call__(self, rows):
        """[n, dim] unit rows."""
        return soft_loss.unit(rows + self.move(rows))


@nnx.jit
def step(adapter: Adapter, optimizer: nnx.Optimizer, parts):
    """The loss before one step of the optimizer."""
    queries, gallery, bank = parts
    value, gradient = nnx.value_and_grad(
        lambda model: soft_loss.loss(model(queries), gallery, model(bank))
    )(adapter)
    optimizer.update(adapter, gradient)
    return value


def main() -> None:
    """Prints the loss before and after, and what was learned gives."""
    parts = soft_loss.pairs()
    adapter = Adapter(parts[0].shape[1], nnx.Rngs(0))
    optimizer = nnx.Optimizer(adapter, optax.adam(soft_loss.LEARNING_RATE), wrt=nnx.Param)
    values = [float(step(adapter, optimizer, parts)) for _ in range(soft_loss.STEPS)]
    soft_loss.report(values, adapter)


if __name__ == "__main__":
    main()
