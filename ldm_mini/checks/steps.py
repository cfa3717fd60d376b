"""What one training step was made of: from how the weights moved, the gradients that moved them."""

import torch
from torch import Tensor

from .checking import CheckFailed


class Watched:
    """Parameters under plain SGD, in which gradients of an earlier step are waiting.

    First `expect` the right loss and those of known mistakes, then call the learner's step with `optimizer`, then
    `judge`: a step of SGD is the gradient itself, so it tells which loss was followed.
    """

    def __init__(self, parameters, rate: float, draw, who: str):
        self.parameters, self.rate, self.who = list(parameters), rate, who
        self.optimizer = torch.optim.SGD(self.parameters, rate)
        self.before = [p.detach().clone() for p in self.parameters]
        self.stale = [draw(*p.shape) for p in self.parameters]
        for p, old in zip(self.parameters, self.stale):
            p.grad = old.clone()

    def expect(self, loss: Tensor, mistakes=()):
        """The loss () whose gradient is right; mistakes: pairs (loss, what to tell the learner)."""
        self.right = self._gradients(loss)
        # now, while the weights are those of the graph
        self.mistakes = [(self._gradients(wrong), message) for wrong, message in mistakes]

    def judge(self, formula: str):
        """Raises CheckFailed if another gradient than the right one moved the weights; formula: the loss in words."""
        moved = [(b - p.detach()) / self.rate for b, p in zip(self.before, self.parameters)]
        was = lambda gradients: all(torch.allclose(m, g, rtol=1e-3, atol=1e-5) for m, g in zip(moved, gradients))
        order = "zero_grad(), then backward(), then step(), all three, in this order."
        if not any(m.any() for m in moved):
            raise CheckFailed(f"{self.who} has not changed: {order}")
        if was(self.right):
            return
        if was(self.stale):
            raise CheckFailed(f"{self.who} followed the gradients of an earlier step: {order}")
        if was([g + s for g, s in zip(self.right, self.stale)]):
            raise CheckFailed(f"the gradients that an earlier step left in {self.who} were added to yours: "
                              "optimizer.zero_grad() before backward().")
        for gradients, message in self.mistakes:
            if was(gradients):
                raise CheckFailed(f"{self.who}: {message}")
        if was([-g for g in self.right]):
            raise CheckFailed(f"{self.who} went the wrong way: it made its loss larger.")
        if was([2 * g for g in self.right]):
            raise CheckFailed(f"{self.who} made a step twice as large: a second backward() or step(), or a factor.")
        raise CheckFailed(f"{self.who} did not make the step of {formula}.")

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found)]
