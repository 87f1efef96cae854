"""Programs for tests that start in no time: one process imports what takes long, and forks for each call. `programs` starts it from a test; `serve` is what it does.

A call comes through a socket: name and arguments, environment, folder and the three standard files; the answer is the child's number and, when it has ended, its exit status.
A small client stands in the place of the program. It hands its own call over, forwards signals, and ends as the child has ended: by the same status or the same signal.
"""
import contextlib, importlib, json, os, select, signal, socket, subprocess, sys

CLIENT = '''#!{python} -S
import json, os, signal, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect({address!r})
call = dict(argv=[os.path.basename(sys.argv[0]), *sys.argv[1:]], env=dict(os.environ), cwd=os.getcwd())
socket.send_fds(s, [json.dumps(call).encode()], [0, 1, 2])
pid = int(s.recv(20))
for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, lambda n, _: os.kill(pid, n))
status = int(s.recv(20))
if status<0:
    signal.signal(-status, signal.SIG_DFL) if status!=-9 else None
    os.kill(os.getpid(), -status)
sys.exit(status)
'''

@contextlib.contextmanager
def programs(folder, names, *server, python=sys.executable, **kwargs):
    "Files in `folder` that can be started under these names; `server` is the script behind them, and its arguments after the address"
    address,(script,*args) = str(folder/'socket'),server
    p = subprocess.Popen([python, '-W', 'ignore', script, address, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kwargs)
    assert p.stdout.readline()=='ready\n'
    for name in names:
        (folder/name).write_text(CLIENT.format(python=sys.executable, address=address))
        (folder/name).chmod(0o755)
    try: yield folder
    finally:
        p.stdin.close()
        p.wait(30)
        p.stdout.close()

def child(program, call, fds):
    "One run of a program; never returns"
    status = 1
    try:
        for to,fd in enumerate(fds): os.dup2(fd, to)
        sys.stdout,sys.stderr = open(1, 'w', closefd=False),open(2, 'w', closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(call['cwd'])
        os.environ.clear()
        os.environ.update(call['env'])
        status = program(*call['argv'])
    except SystemExit as e: status = e.code
    except BaseException: sys.excepthook(*sys.exc_info())
    finally:
        for f in (sys.stdout, sys.stderr): f.flush()
        os._exit(status or 0)

def serve(address, program):
    "Fork for each call, `program(name, *arguments)`, until standard input closes; then end what still runs"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print('ready', flush=True)
    running = {}
    while True:
        ready,_,_ = select.select([server, sys.stdin], [], [], .01)
        if sys.stdin in ready: break
        if server in ready:
            s,_ = server.accept()
            text,fds,_,_ = socket.recv_fds(s, 1<<20, 3)
            if not (pid := os.fork()): child(program, json.loads(text), fds)
            for fd in fds: os.close(fd)
            running[pid] = s
            s.sendall(str(pid).encode())
        for pid in list(running):
            done,status = os.waitpid(pid, os.WNOHANG)
            if done:
                with contextlib.suppress(OSError): running.pop(pid).sendall(str(os.waitstatus_to_exitcode(status)).encode()) # a client may have been killed
    for pid in running: os.kill(pid, signal.SIGKILL)

def clearsight(name, *args): return importlib.import_module('clearsight_nb.core.cli').main([*args])

if __name__ == '__main__': # ADDRESS MODULE…: the program `clearsight`, with these modules imported
    for name in sys.argv[2:]: importlib.import_module(name)
    serve(sys.argv[1], clearsight)
