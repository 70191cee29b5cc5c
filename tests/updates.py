"""What one step does to a network, from the same start with many seeds."""

import lightning as L
from torch import nn
from torch.utils.data import Dataset


class Repeated(Dataset):
    """The same presample again and again."""

    def __init__(self, batch, times):
        self.batch, self.times = batch, times

    def __len__(self):
        return self.times

    def __getitem__(self, index):
        return self.batch


class OneStepFromTheSameStart(L.Callback):
    """Note each step's update, then go back and take the next seed."""

    def __init__(self, sampling):
        self.sampling, self.updates, self.start = sampling, [], None

    def on_train_start(self, trainer, pl_module):
        self.start = nn.utils.parameters_to_vector(pl_module.parameters()).detach()
        self._seed(0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = nn.utils.parameters_to_vector(pl_module.parameters()).detach()
        self.updates.append(now - self.start)
        nn.utils.vector_to_parameters(self.start.clone(), pl_module.parameters())
        self._seed(batch_idx + 1)

    def _seed(self, seed):
        state = self.sampling.state_dict() | {"seed": seed, "draws": 0}
        self.sampling.load_state_dict(state)
