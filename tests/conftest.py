import torch


# Models of the tests are too small to share out; threads that wait for busy cores make them a hundred times slower.
torch.set_num_threads(1)
