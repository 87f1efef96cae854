"""Starts Jupyter kernels in forked children: used by test_kernels.py.

A kernel of ours imports fastai and torch first of all, which takes longer than what these tests do. One process imports them, and nothing of ours,
and forks for each kernel that Jupyter starts (fork_server.py). It runs on the Python of the made-up Kaggle.
"""
import importlib, sys
from fork_server import serve

# Third-party modules that our kernels import; what one of them lacks here, it imports itself
HEAVY = ('fastai.vision.all', 'torch._dynamo', 'diffusers.models.unets.unet_2d', 'diffusers.models.unets.unet_2d_condition', 'segmentation_models_pytorch',
         'torchmetrics.functional.image', 'skimage.metrics', 'sklearn.ensemble', 'omegaconf', 'ipykernel.kernelapp', 'ipykernel.ipkernel')

def kernel(name, *args):
    "One kernel, until Jupyter shuts it down"
    sys.modules['ipykernel.kernelapp'].IPKernelApp.launch_instance([*args])

if __name__ == '__main__':
    sys.path.pop(0) # the folder of the tests
    for name in HEAVY: importlib.import_module(name)
    assert 'clearsight_nb' not in sys.modules
    serve(sys.argv[1], kernel)
