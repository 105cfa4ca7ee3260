"""The structs and callbacks of `cpp/pocketphi.h`, for ctypes; field for field as there."""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)

Progress = CFUNCTYPE(None, c_void_p, c_uint64, c_uint64)
Decode = CFUNCTYPE(c_size_t, c_void_p, POINTER(c_int64), c_size_t, c_void_p, c_size_t)
OnToken = CFUNCTYPE(None, c_void_p, c_int64, c_double)
OnText = CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)
OnPart = CFUNCTYPE(None, c_void_p, c_int64, c_int64)


class Error(ctypes.Structure):
    _fields_ = [("text", c_char * 1024)]


class LoadOptions(ctypes.Structure):
    _fields_ = [
        ("model", c_char_p),
        ("cache_dir", c_char_p),
        ("threads", c_int32),
        ("prefill_chunk", c_int32),
        ("on_progress", Progress),
        ("context", c_void_p),
    ]


class LoadReport(ctypes.Structure):
    _fields_ = [
        ("context_length", c_int64),
        ("prefill_chunk", c_int64),
        ("vocab_size", c_int64),
        ("logits_positions", c_int64),
        ("packing", c_int32),
        ("threads", c_int32),
        ("load_ms", c_double),
        ("pack_ms", c_double),
        ("packed_bytes", c_uint64),
        ("planned_bytes", c_uint64),
        ("private_bytes", c_uint64),
        ("takes_pictures", c_bool),
        ("takes_sound", c_bool),
        ("sound_rate", c_int32),
        ("packed_note", c_char * 512),
    ]


class EncodedMedia(ctypes.Structure):
    _fields_ = [
        ("first_id", c_int64),
        ("count", c_int64),
        ("parts", c_int64),
        ("reused", c_bool),
        ("prepare_ms", c_double),
        ("encode_ms", c_double),
    ]


class Generation(ctypes.Structure):
    _fields_ = [
        ("max_new_tokens", c_int64),
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("seed", c_uint64),
        ("draft_tokens", c_int32),
        ("ignore_eos", c_bool),
        ("stop_ids", POINTER(c_int64)),
        ("stop_id_count", c_size_t),
        ("stop_texts", POINTER(c_char_p)),
        ("stop_text_count", c_size_t),
        ("decode", Decode),
        ("on_token", OnToken),
        ("on_text", OnText),
        ("context", c_void_p),
    ]


class Result(ctypes.Structure):
    _fields_ = [
        ("end", c_int32),
        ("prompt_tokens", c_int64),
        ("reused_tokens", c_int64),
        ("new_tokens", c_int64),
        ("steps", c_int64),
        ("drafted_tokens", c_int64),
        ("accepted_tokens", c_int64),
        ("prefill_ms", c_double),
        ("first_token_ms", c_double),
        ("decode_ms", c_double),
    ]


MEMORY = ("anonymous", "file", "swapped", "dirty", "footprint")


class MemoryUse(ctypes.Structure):
    _fields_ = [(name, c_uint64) for name in MEMORY]
