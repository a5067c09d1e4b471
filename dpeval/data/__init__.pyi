"""What :mod:`dpeval.data` exports, for type checkers: it imports these names when they are used."""

from dpeval.data.sources.image_folder import image_folder as image_folder
from dpeval.data.sources.imagenette import imagenette as imagenette
from dpeval.data.sources.prepare import MakeSource as MakeSource
from dpeval.data.sources.prepare import prepare as prepare
from dpeval.data.sources.prepare import used as used
from dpeval.data.sources.source import Source as Source
from dpeval.data.sources.synthetic import imagenette_like as imagenette_like
from dpeval.data.sources.tokens import generated_tokens as generated_tokens
from dpeval.data.sources.tokens import token_files as token_files
