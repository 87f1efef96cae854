"""Starts Jupyter kernels in forked children: used by test_kernels.py.

A kernel of ours imports fastai and torch first of all, which takes longer than what these tests do. One process imports them, and nothing of ours,
and forks for each kernel that Jupyter starts. It runs on the Python of the made-up Kaggle.
"""
import importlib, json, os, signal, socket, sys

# Third-party modules that our kernels import; what one of them lacks here, it imports itself
HEAVY = ('fastai.vision.all', 'torch._dynamo', 'diffusers.models.unets.unet_2d', 'diffusers.models.unets.unet_2d_condition', 'segmentation_models_pytorch',
         'torchmetrics.functional.image', 'skimage.metrics', 'sklearn.ensemble', 'omegaconf', 'ipykernel.kernelapp', 'ipykernel.ipkernel')
# What Jupyter starts in the place of a kernel: hands its own call over and lasts as long as the kernel, which holds the other end of the socket
CLIENT = '''#!{python} -S
import json, os, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
s = socket.socket(socket.AF_UNIX)
s.connect({address!r})
socket.send_fds(s, [json.dumps(dict(argv=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd())).encode()], [0, 1, 2])
s.recv(1)
'''

def kernel(call, fds):
    "One kernel, until Jupyter shuts it down; never returns"
    for to,fd in enumerate(fds): os.dup2(fd, to)
    sys.stdout,sys.stderr = open(1, 'w', closefd=False),open(2, 'w', closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(call['cwd'])
    os.environ.clear()
    os.environ.update(call['env'])
    try: sys.modules['ipykernel.kernelapp'].IPKernelApp.launch_instance(call['argv'])
    except BaseException: sys.excepthook(*sys.exc_info())
    finally: os._exit(0)

def serve(address):
    "Fork for each call, until killed"
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN) # nobody waits for kernels
    print('ready', flush=True)
    while True:
        s,_ = server.accept()
        text,fds,_,_ = socket.recv_fds(s, 1<<20, 3)
        if not os.fork(): kernel(json.loads(text), fds)
        for fd in fds: os.close(fd)
        s.close()

if __name__ == '__main__':
    sys.path.pop(0) # the folder of the tests
    for name in HEAVY: importlib.import_module(name)
    assert 'clearsight_nb' not in sys.modules
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.argv[1])
