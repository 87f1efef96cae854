"What holds for every viewer, whatever it shows: used by test_viewer.py and test_task_viewers.py. `make(**state)` makes the viewer, `other` is a state that is not the first one."
import io, json, math
import numpy as np, pytest
from PIL import Image

def check_state(make, other):
    "State is plain Python, goes through JSON, and gives the same bytes in another viewer; any state can be had at once or control by control"
    v = make()
    before = v.png
    v.set(**other)
    assert v.state==other==json.loads(json.dumps(v.state)) and v.png!=before
    u = make()
    for k,x in other.items(): u.inputs[k].value = x
    assert u.png==v.png==make(**other).png and u.alt(**u.state)==v.alt(**v.state)
    assert u.set(**make().state).png==before
    x = v.draw(**v.state)
    assert x.dtype==np.uint8 and np.array_equal(np.asarray(Image.open(io.BytesIO(v.png))), x)

def check_controls(make):
    "Sliders and buttons, which JupyterLab lets have their keys, with names; every end of every control is drawn without an error, and the picture has its sentence as its title"
    W = pytest.importorskip('ipywidgets', reason='ipywidgets is not installed')
    v = make()
    for w in v.inputs.values(): assert isinstance(w, (W.IntSlider, W.FloatSlider, W.SelectionSlider, W.ToggleButton)) and w.description
    assert isinstance(v.ui, W.VBox) and v.image.value==v.png and v.image.tooltip==v.alt(**v.state)
    for k,w in v.inputs.items():
        start = v.state[k]
        for e in w.options if hasattr(w, 'options') else (w.min, w.max) if hasattr(w, 'max') else (False, True):
            assert v.set(**{k: e}).state[k]==e and v.error is None and v.image.value==v.png and v.image.tooltip==v.alt(**v.state)
        v.set(**{k: start})

def check_refused(make, other):
    "A value that a control cannot have, or a control that is not there, changes nothing"
    v = make()
    old = v.state
    with pytest.raises(ValueError, match="no control 'indx', only " + ', '.join(old)): v.set(**other, indx=3)
    for k,w in v.inputs.items():
        for b in ['no such', None] if hasattr(w, 'options') else [w.min-1, w.max+1, 'a', None, math.nan, True] if hasattr(w, 'max') else [3, 'yes']:
            for refuses in (lambda: v.set(**{**other, k: b}), lambda: v.static({k: b}), lambda: make(**{k: b})):
                with pytest.raises(ValueError, match=f'^{k} is '): refuses()
    assert v.state==old
