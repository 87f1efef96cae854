"""Viewers in a real browser: voila and JupyterLab serve a notebook, Chromium opens it, an arrow key moves a slider, and the picture that arrives is the one that Python draws.
Servers listen on 127.0.0.1 only, with a token of their own switched off, and are ended with all their kernels. Screenshots go to $CLEARSIGHT_ARTEFACTS, or to pytest's folder."""
import base64, contextlib, ctypes, os, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import nbformat, pytest
from conftest import ROOT

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
if not sys.platform.startswith('linux'): pytest.skip('servers are tied to the test by a system call of Linux', allow_module_level=True)
if CHROMIUM is None: pytest.skip('Chromium is not installed (apt-get install chromium)', allow_module_level=True)
for package in ('playwright', 'ipywidgets', 'psutil'): pytest.importorskip(package, reason=f'{package} is not installed (pip install {package})')
import psutil
from playwright.sync_api import sync_playwright

LIMIT = 120 # seconds for a server to come up, a kernel to start and run; the machine may be busy
CELL = '''import numpy as np
from clearsight_nb.core.compare import CompareViewer
y,x = np.mgrid[:48,:64]/64
left,right = np.stack([x, y, 1-x], -1),np.stack([y, 1-x, x], -1)
viewer = CompareViewer(dict(left=left, right=right), px=320)'''

def draw(**state): # the viewer of the notebook, here
    names = {}
    exec(CELL, names)
    return names['viewer'].set(**state)

@pytest.fixture
def notebook(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# Two pictures'), nbformat.v4.new_code_cell(CELL), nbformat.v4.new_code_cell('viewer')],
        metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')))
    (tmp_path/'site').mkdir()
    nbformat.write(nb, tmp_path/'site'/'two.ipynb')
    return tmp_path/'site'/'two.ipynb'

@pytest.fixture
def artefacts(tmp_path):
    folder = Path(os.environ.get('CLEARSIGHT_ARTEFACTS') or tmp_path/'artefacts')
    folder.mkdir(parents=True, exist_ok=True)
    return folder

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def end(process):
    "End a process that was started here, and all that it started, whatever they are doing"
    try: family = [psutil.Process(process.pid)]
    except psutil.NoSuchProcess: family = []
    for p in family[:1]: family += p.children(recursive=True)
    for kill in ('terminate', 'kill'):
        for p in family:
            with contextlib.suppress(psutil.NoSuchProcess): getattr(p, kill)()
        _,family = psutil.wait_procs(family, timeout=10)
    process.wait(timeout=10)
    assert not family, f'still there: {family}'

@contextlib.contextmanager
def server(module, arguments, home, ready):
    "A Jupyter server as a process of its own; settings, history and kernels' files stay in `home`"
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', HOME=str(home), JUPYTER_NO_CONFIG='1', PYTHONWARNINGS='ignore')
    env |= {k: str(home/k.lower()) for k in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR')}
    news = home/'jupyterlab_settings_dir'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    log = home/'server.log'
    command,libc = [sys.executable, '-m', module, *arguments],ctypes.CDLL(None)
    follow = lambda: libc.prctl(1, signal.SIGTERM) # PR_SET_PDEATHSIG: it ends with this process, even if that is killed
    with open(log, 'wb') as f: process = subprocess.Popen(command, env=env, cwd=home, stdout=f, stderr=subprocess.STDOUT, preexec_fn=follow)
    try:
        until = time.monotonic() + LIMIT
        while True:
            assert process.poll() is None and time.monotonic()<until, f'{module} did not come up:\n' + log.read_text(errors='replace')[-3000:]
            try:
                if urllib.request.urlopen(ready, timeout=LIMIT).status==200: break
            except OSError: time.sleep(.5)
        yield log
    finally: end(process)

@contextlib.contextmanager
def browser(artefacts, width=1280, height=800):
    "A page of Chromium that reaches nothing but this machine"
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'], timeout=LIMIT*1000)
        try:
            page = chromium.new_page(viewport=dict(width=width, height=height))
            page.set_default_timeout(LIMIT*1000)
            page.route('**/*', lambda r: r.continue_() if r.request.url.startswith(('http://127.0.0.1', 'blob:', 'data:')) else r.abort())
            yield page
        except BaseException:
            page.screenshot(path=artefacts/'failed.png')
            raise
        finally: chromium.close()

LOADED = "old => { const i = document.querySelector('img.widget-image'); return i && i.src && i.src!==old && i.complete && i.naturalWidth>0 }"
CONTENT = '''async () => { const img = document.querySelector('img.widget-image'), bytes = new Uint8Array(await (await fetch(img.src)).arrayBuffer());
    return {src: img.src, title: img.title, width: img.naturalWidth, png: btoa(Array.from(bytes, b => String.fromCharCode(b)).join(''))} }'''
CUT = '''() => [...document.querySelectorAll('.widget-label, .widget-readout, .widget-html-content')]
    .filter(e => e.clientWidth && e.scrollWidth>e.clientWidth+1).map(e => e.textContent)'''

def shown(page, old=''): # the picture in the page, when it is another than `old`
    page.wait_for_function(LOADED, arg=old)
    return page.evaluate(CONTENT)

def use(page, artefacts, name):
    "Move the wipe by keyboard, then what is shown: each time the picture that Python draws has arrived; nothing is cut off"
    first = shown(page)
    assert base64.b64decode(first['png'])==draw().png and first['title']==draw().alt(**draw().state) and first['width']==320
    page.screenshot(path=artefacts/f'{name}_before.png')
    show,wipe = page.get_by_role('slider').all()[:2]
    wipe.focus()
    for _ in range(3): page.keyboard.press('ArrowRight')
    page.wait_for_function("document.querySelector('img.widget-image').title.includes('left 53 %')")
    second = shown(page, first['src'])
    assert base64.b64decode(second['png'])==draw(wipe=53).png!=base64.b64decode(first['png'])
    show.focus()
    page.keyboard.press('ArrowRight') # from wipe to difference
    page.wait_for_function("document.querySelector('img.widget-image').title.startsWith('Absolute')")
    third = shown(page, second['src'])
    assert base64.b64decode(third['png'])==draw(wipe=53, show='difference').png
    assert 'PSNR of what is visible' in page.locator('.widget-html-content [role=status]').inner_text()
    assert page.get_by_role('img', name=third['title']).count()==1 # what a screen reader calls the picture
    page.screenshot(path=artefacts/f'{name}_after.png')
    assert not (cut := page.evaluate(CUT)), f'labels that are cut off: {cut}'

def test_voila(notebook, artefacts, tmp_path):
    pytest.importorskip('voila', reason='voila is not installed (pip install voila)')
    port = free_port()
    arguments = [str(notebook), '--no-browser', f'--port={port}', '--Voila.ip=127.0.0.1']
    with server('voila', arguments, tmp_path, f'http://127.0.0.1:{port}/voila/static/voila.js'), browser(artefacts) as page:
        page.goto(f'http://127.0.0.1:{port}/')
        use(page, artefacts, 'voila')
        page.set_viewport_size(dict(width=400, height=900))
        page.screenshot(path=artefacts/'voila_narrow.png')
        assert page.evaluate("document.querySelector('img.widget-image').getBoundingClientRect().right")<=400

def test_jupyterlab(notebook, artefacts, tmp_path):
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed (pip install jupyterlab)')
    port = free_port()
    arguments = ['--no-browser', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=', '--ServerApp.password=', f'--ServerApp.root_dir={notebook.parent}']
    if os.geteuid()==0: arguments.append('--allow-root')
    with server('jupyterlab', arguments, tmp_path, f'http://127.0.0.1:{port}/api'), browser(artefacts) as page:
        page.goto(f'http://127.0.0.1:{port}/lab/tree/two.ipynb?reset')
        page.get_by_text('| Idle').wait_for() # the kernel is up
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.locator('[data-command="runmenu:run-all"]').click()
        use(page, artefacts, 'jupyterlab')
