"""An emulator of the embedding API on loopback, to try the package without a server and to inject faults in tests.

    with Emulator(EmulatorSettings(model="attributes")) as emulator:
        client = openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key)

Its vectors come from a hash or from a small lexicon, not from the real model; every answer carries its fingerprint.
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
