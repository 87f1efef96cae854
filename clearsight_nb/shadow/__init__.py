"Controllable soft shadows: a light and a cut-out in, its shadow out. `from clearsight_nb.shadow import *` gives everything a notebook needs."
from .render import *
from .objects import *
from .sample import *
from .data import *
from .benchmark import *
from .light import *
from .metrics import *
from .models import *
from .latent import *
from .sdxl import *
