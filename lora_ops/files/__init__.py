"""Reading and writing files of tensors; knows nothing of what the tensors mean."""

from __future__ import annotations

from .base import FileSource, Stamp, changed, is_folder, read_errors, stamp
from .digests import DATA_HASH, SPEC_HASH
from .dtypes import dtype_name
from .hashes import data_sha256, false_hash, file_sha256, input_sha256, recorded_hash
from .opening import open_source, read_metadata
from .quantised.signs import quantisation, refuse_quantised
from .quantised.source import QuantisedSource
from .reading.config import model_config
from .reading.folder import is_peft_folder, open_folder
from .reading.gguf_file import GgufFile
from .reading.joined import JoinedSource
from .reading.pickled import PickledFile
from .reading.renamed import RenamedSource, modernised
from .reading.routed import RoutedSource
from .reading.safetensors_file import SafetensorsFile
from .reading.sharded import open_sharded
from .reading.single import open_file
from .writing.folder import FolderWriter, beside_weights, check_folder
from .writing.memory import MemoryFile, Output, writer_of
from .writing.outputs import check_output, make_folder
from .writing.publish import check_name, explained, hidden, move_all, unfinished_in, write_whole
from .writing.reheaded import rewrite
from .writing.shards import INDEX, ShardsWriter, partition, shard_paths
from .writing.writer import SafetensorsWriter, Written, save

__all__ = [
    "DATA_HASH",
    "INDEX",
    "SPEC_HASH",
    "FileSource",
    "FolderWriter",
    "GgufFile",
    "JoinedSource",
    "MemoryFile",
    "Output",
    "PickledFile",
    "QuantisedSource",
    "RenamedSource",
    "RoutedSource",
    "SafetensorsFile",
    "SafetensorsWriter",
    "ShardsWriter",
    "Stamp",
    "Written",
    "beside_weights",
    "changed",
    "check_folder",
    "check_name",
    "check_output",
    "data_sha256",
    "dtype_name",
    "explained",
    "false_hash",
    "file_sha256",
    "hidden",
    "input_sha256",
    "is_folder",
    "is_peft_folder",
    "make_folder",
    "model_config",
    "modernised",
    "move_all",
    "open_file",
    "open_folder",
    "open_sharded",
    "open_source",
    "partition",
    "quantisation",
    "read_errors",
    "read_metadata",
    "recorded_hash",
    "refuse_quantised",
    "rewrite",
    "save",
    "shard_paths",
    "stamp",
    "unfinished_in",
    "write_whole",
    "writer_of",
]
