"""The interface of _codec.c is that of _pycodec.py."""

from ._pycodec import Decoder as Decoder
from ._pycodec import MaskingKeys as MaskingKeys
from ._pycodec import apply_mask as apply_mask
from ._pycodec import encode_frame as encode_frame
from ._pycodec import encode_header as encode_header
