"""The embedding API on loopback: an embedded default, and a peer for tests that can be told to misbehave.

    with Emulator(EmulatorSettings(model="attributes")) as emulator:
        client = openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key)

Its vectors come from a hash or from a small lexicon, never from the real model; every answer says so.
"""

from .process import EmulatorProcess, start_emulator_process
from .server import Emulator, emulator_fingerprint
from .settings import EmulatorSettings, Faults, Limits

__all__ = [
    "Emulator",
    "EmulatorProcess",
    "EmulatorSettings",
    "Faults",
    "Limits",
    "emulator_fingerprint",
    "start_emulator_process",
]
