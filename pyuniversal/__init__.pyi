from .errors import ActivationError as ActivationError
from .errors import BackendError as BackendError
from .errors import FileError as FileError
from .errors import InputError as InputError
from .errors import NotEnoughMemoryError as NotEnoughMemoryError
from .errors import PyUniversalError as PyUniversalError
from .models import Model as Model
from .models import load_model as load_model
from .pipeline import observe_stage as observe_stage
from .pipeline import plan as plan
from .pipeline import run as run
from .pipeline import table_stage as table_stage
from .results import Run as Run
from .results import open_run as open_run
from .sources import ModelSite as ModelSite
from .streaming import observe as observe
from .tokens import Tokens as Tokens
from .tokens import load_tokens as load_tokens
from .tokens import tokenize as tokenize
from .totals import Histogram as Histogram
from .totals import Moments as Moments
from .totals import Product as Product
from .totals import Totals as Totals
from .universality import Correlation as Correlation
from .universality import correlate as correlate

__version__: str
