"""The public names, which are loaded when first used."""

from .errors import D2NetError as D2NetError
from .errors import FormatError as FormatError
from .errors import ImageError as ImageError
from .errors import InputError as InputError
from .errors import MappingError as MappingError
from .errors import MissingPackageError as MissingPackageError
from .errors import OutputBusyError as OutputBusyError
from .errors import OutputError as OutputError
from .errors import TrainingError as TrainingError
from .errors import WeightsError as WeightsError
from .extraction.d2net import D2Net as D2Net
from .extraction.folder import extract_folder as extract_folder
from .features import Features as Features
from .features import Matches as Matches
from .io.h5 import FeatureFile as FeatureFile
from .io.h5 import FeatureWriter as FeatureWriter
from .io.h5 import MatchFile as MatchFile
from .io.h5 import MatchWriter as MatchWriter
from .io.image_lists import find_images as find_images
from .io.images import read_image as read_image
from .mapping.localize import Map as Map
from .mapping.reconstruct import reconstruct as reconstruct
from .mapping.settings import MappingSettings as MappingSettings
from .matching import match as match
from .matching.match_pairs import match_pairs as match_pairs
from .matching.nearest import mutual_nearest as mutual_nearest
from .matching.pair_selection import PairChoice as PairChoice
from .matching.refine import refine as refine
from .matching.verification import verify as verify
from .onnx.export import export_onnx as export_onnx
from .settings import ExtractionSettings as ExtractionSettings
from .visualization import plot_keypoints as plot_keypoints
from .visualization import plot_matches as plot_matches

__version__: str
