"""Runs the program `clearsight` in forked children: used by test_slurm.py.

Importing fastai takes longer than what these tests do, so one process imports it and forks for each call. A call comes through a socket: arguments,
environment, folder and the three standard files; the answer is the child's number and, in the end, its exit status.
"""
import importlib, json, os, select, signal, socket, sys

# What stands in the place of the program: hands its own call over, forwards TERM, ends with the same status
CLIENT = '''#!{python} -S
import json, os, signal, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect({address!r})
socket.send_fds(s, [json.dumps(dict(argv=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd())).encode()], [0, 1, 2])
pid = int(s.recv(20))
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
sys.exit(int(s.recv(20)))
'''

def child(call, fds):
    "One run of the program; never returns"
    status = 70
    try:
        for to,fd in enumerate(fds): os.dup2(fd, to)
        sys.stdout,sys.stderr = open(1, 'w', closefd=False),open(2, 'w', closefd=False)
        os.chdir(call['cwd'])
        os.environ.clear()
        os.environ.update(call['env'])
        from clearsight_nb.core.cli import main
        try: status = main(call['argv'])
        except SystemExit as e: status = e.code
    except BaseException: sys.excepthook(*sys.exc_info())
    finally:
        for f in (sys.stdout, sys.stderr): f.flush()
        os._exit(status or 0)

def serve(address):
    "Fork for each call until standard input closes"
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print('ready', flush=True)
    running = {}
    while True:
        ready,_,_ = select.select([server, sys.stdin], [], [], .01)
        if sys.stdin in ready: return
        if server in ready:
            s,_ = server.accept()
            text,fds,_,_ = socket.recv_fds(s, 1<<20, 3)
            if not (pid := os.fork()): child(json.loads(text), fds)
            for fd in fds: os.close(fd)
            running[pid] = s
            s.sendall(str(pid).encode())
        for pid in list(running):
            done,status = os.waitpid(pid, os.WNOHANG)
            if done: running.pop(pid).sendall(f'{os.waitstatus_to_exitcode(status) % 256}'.encode())

if __name__ == '__main__':
    for name in ('clearsight_nb.weather', 'torch._dynamo'): importlib.import_module(name) # the first optimizer would import the latter, for seconds
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.argv[1])
