"""Signatures against the published vectors, and every way to damage an envelope."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.adapters import codec
from trading.adapters.approval_signer import create_approval_key, load_approval_signer
from trading.adapters.config import DeskHome
from trading.adapters.signing import Ed25519Verifier, Envelope, key_id_of, load_public_key, open_envelope, pae, seal
from trading.adapters.signing_keys import create_key, load_signer
from trading.domain.errors import ConfigurationError, InvalidValue, SignatureRefused
from trading.testing.keys import make_test_signer

VECTORS = Path(__file__).parent.parent / "data" / "vectors"
TYPE = "application/vnd.test+json"
SIGNER = make_test_signer("risk")
VERIFIER = Ed25519Verifier.of(SIGNER.public_key)


def wycheproof() -> list[Any]:
    groups = json.loads((VECTORS / "ed25519_test.json").read_text())["testGroups"]
    return [
        pytest.param(group["publicKey"]["pk"], case, id=str(case["tcId"]))
        for group in groups
        for case in group["tests"]
    ]


@pytest.mark.parametrize(("public_key", "case"), wycheproof())
def test_wycheproof_ed25519(public_key: str, case: dict[str, str]) -> None:
    verifier = Ed25519Verifier.of(public_key)
    message, signature = bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
    if case["result"] == "valid":
        verifier.verify(key_id_of(public_key), message, signature)
    else:
        with pytest.raises(SignatureRefused):
            verifier.verify(key_id_of(public_key), message, signature)


@pytest.mark.parametrize("name", ["arrays", "french", "structures", "unicode", "values", "weird"])
def test_rfc_8785_vectors(name: str) -> None:
    data = json.loads((VECTORS / "jcs" / "input" / f"{name}.json").read_text(encoding="utf-8"))
    expected = bytes.fromhex((VECTORS / "jcs" / "outhex" / f"{name}.txt").read_text().replace("\n", " "))
    assert codec.canonical_json(data) == expected


json_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)


@given(json_data)
def test_the_fast_canonical_form_equals_the_reference(data: Any) -> None:
    try:
        expected = codec.canonical_json(data)
    except InvalidValue:
        return
    assert codec.canonical(data) == expected


def test_pre_authentication_encoding_is_the_one_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_good_envelope_opens_to_its_exact_bytes() -> None:
    text = seal(b'{"a":1}', TYPE, SIGNER).to_json()
    assert open_envelope(text, VERIFIER, TYPE) == b'{"a":1}'


def test_every_single_byte_changed_is_refused() -> None:
    text = seal(b'{"a":1}', TYPE, SIGNER).to_json()
    for index in range(len(text)):
        damaged = text[:index] + chr((ord(text[index]) + 1) % 128) + text[index + 1 :]
        with pytest.raises(SignatureRefused):
            open_envelope(damaged, VERIFIER, TYPE)


def test_every_truncation_is_refused() -> None:
    text = seal(b'{"a":1}', TYPE, SIGNER).to_json()
    for length in range(len(text)):
        with pytest.raises(SignatureRefused):
            open_envelope(text[:length], VERIFIER, TYPE)


def respell(change: str) -> str:
    raw = orjson.loads(seal(b'{"a":1}', TYPE, SIGNER).to_json())
    if change == "spaces":
        return json.dumps(raw, indent=1)
    if change == "key order":
        return json.dumps(dict(reversed(raw.items())), separators=(",", ":"))
    if change == "extra field":
        raw["note"] = "x"
    if change == "second signature":
        raw["signatures"] *= 2
    if change == "url-safe base64":
        raw["payload"] = base64.urlsafe_b64encode(b"\xfb\xff" * 3).decode()
    if change == "padding":
        raw["payload"] = raw["payload"].rstrip("=") + "===="
    if change == "array":
        return json.dumps([raw])
    return json.dumps(raw, separators=(",", ":"))


@pytest.mark.parametrize(
    "change", ["spaces", "key order", "extra field", "second signature", "url-safe base64", "padding", "array"]
)
def test_another_spelling_of_the_same_envelope_is_refused(change: str) -> None:
    with pytest.raises(SignatureRefused) as caught:
        open_envelope(respell(change), VERIFIER, TYPE)
    assert caught.value.code == "ENVELOPE_MALFORMED"


def test_each_kind_of_refusal_has_its_own_code() -> None:
    other = make_test_signer("mallory")
    stranger = seal(b"{}", TYPE, other).to_json()
    borrowed = Envelope(b"{}", TYPE, SIGNER.key_id, other.sign(pae(TYPE, b"{}"))).to_json()
    wrong_type = seal(b"{}", "application/vnd.other+json", SIGNER).to_json()
    codes: list[str] = []
    for text in (stranger, borrowed, wrong_type, "{}"):
        with pytest.raises(SignatureRefused) as caught:
            open_envelope(text, VERIFIER, TYPE)
        codes.append(caught.value.code)
    assert codes == ["KEY_UNKNOWN", "SIGNATURE_REFUSED", "PAYLOAD_TYPE", "ENVELOPE_MALFORMED"]


@pytest.mark.parametrize(
    ("kind", "key"), [("5", '"k"'), ("null", '"k"'), ('["t"]', '"k"'), ('"t"', "5"), ('"t"', '["k"]'), ('"t"', "{}")]
)
def test_an_envelope_whose_names_are_not_text_is_malformed_and_no_fault_of_ours(kind: str, key: str) -> None:
    text = f'{{"payload":"","payloadType":{kind},"signatures":[{{"keyid":{key},"sig":""}}]}}'
    with pytest.raises(SignatureRefused) as caught:
        open_envelope(text, VERIFIER, TYPE)
    assert caught.value.code == "ENVELOPE_MALFORMED"


def test_keys_are_private_files_that_serve_one_purpose(tmp_path: Path) -> None:
    home = DeskHome(tmp_path / "desk").ensure()
    path = home.keys("coordinator") / "leader.key"
    made = create_key(path, "leader", public_path=home.public_keys / "leader.pub")
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_signer(path, "leader").public_key == made.public_key == load_public_key(home.public_keys / "leader.pub")
    with pytest.raises(ConfigurationError) as caught:
        load_signer(path, "agent")
    assert caught.value.code == "KEY_PURPOSE"
    with pytest.raises(FileExistsError):
        create_key(path, "leader")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    home = DeskHome(tmp_path / "desk").ensure()
    create_approval_key(home)
    path = home.keys("risk") / "approval.key"
    path.chmod(0o640)
    with pytest.raises(ConfigurationError) as caught:
        load_approval_signer(home)
    assert caught.value.code == "LOOSE_PERMISSIONS"


def test_an_agent_key_can_not_approve(tmp_path: Path) -> None:
    home = DeskHome(tmp_path / "desk").ensure()
    create_key(home.keys("risk") / "approval.key", "agent")
    with pytest.raises(ConfigurationError):
        load_approval_signer(home)
    with pytest.raises(ConfigurationError):
        create_key(home.keys("risk") / "second.key", "approval")


def test_a_signer_does_not_show_its_key() -> None:
    assert SIGNER.key_id in repr(SIGNER)
    assert len(repr(SIGNER)) < 40
