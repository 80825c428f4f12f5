"""A server is known, or refused with a sentence, before anything is read or paid."""

import pytest

from epithre_beam.configs.errors import ApiError
from epithre_beam.transforms.epithre.probe import probe

from .asking import serve, settings_for


def test_greeting_finds_the_emulator_out_and_refuses_early_what_cannot_work():
    with serve() as emulator:
        probed = probe(settings_for(emulator), emulator.api_key)
        assert probed.emulator == emulator.model.fingerprint
        with pytest.raises(ApiError, match="refused the key"):
            probe(settings_for(emulator), "wrong")
        with pytest.raises(ApiError, match="'epithre-embde' is not served"):
            probe(settings_for(emulator, model="epithre-embde"), emulator.api_key)
        gone = settings_for(emulator)
    with pytest.raises(ApiError, match="does not answer"):
        probe(gone, "any", pause_s=0.01)
