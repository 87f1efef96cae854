"Derain: take rain out of photographs, with diffusion over the difference of spectra. `from clearsight_nb.derain import *` gives all a notebook needs."
from fastai.vision.all import *
from ..core.env import *
from ..core.recipe import *
from ..core.files import *
from ..core.photos import *
from .data import *
from .sample import *
