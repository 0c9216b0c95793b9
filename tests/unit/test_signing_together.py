"""One signature for several payloads: each envelope stands alone, and none can borrow another's place."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.adapters.inclusion import LEAVES_MAX, Place, plant, root_from
from trading.adapters.signing import (
    BATCH_PAYLOAD_TYPE,
    Ed25519Verifier,
    Envelope,
    open_envelope,
    pae,
    seal,
    seal_together,
)
from trading.adapters.sql.merkle import Frontier
from trading.domain.errors import SignatureRefused
from trading.domain.identifiers import KeyId
from trading.testing.keys import make_test_signer

TYPE = "application/vnd.test+json"
SIGNER = make_test_signer("risk")
PAYLOADS = [b'{"n":%d}' % number for number in range(7)]


def verifier() -> Ed25519Verifier:
    return Ed25519Verifier.of(SIGNER.public_key)


class Counting:
    """A signer and a verifier that count."""

    def __init__(self) -> None:
        self.signed = 0

    @property
    def key_id(self) -> KeyId:
        return SIGNER.key_id

    def sign(self, message: bytes) -> bytes:
        self.signed += 1
        return SIGNER.sign(message)


def refused(envelope: Envelope) -> str:
    with pytest.raises(SignatureRefused) as error:
        open_envelope(envelope.to_json(), verifier(), TYPE)
    return error.value.code


@pytest.mark.parametrize("size", [*range(2, 34), 100, 255, 256, 257])
def test_the_tree_is_the_one_of_rfc_6962_and_every_leaf_finds_its_root(size: int) -> None:
    leaves = [b"%d" % number for number in range(size)]
    frontier = Frontier()
    frontier.extend(leaves)
    root, places = plant(leaves)
    assert root == frontier.root()
    assert [root_from(leaf, place) for leaf, place in zip(leaves, places, strict=True)] == [root] * size
    assert [(place.number, place.size) for place in places] == [(number, size) for number in range(size)]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20))
def test_each_of_several_opens_alone_after_one_signature(payloads: list[bytes]) -> None:
    signer = Counting()
    envelopes = seal_together(payloads, TYPE, signer)
    assert signer.signed == 1
    assert [open_envelope(item.to_json(), verifier(), TYPE) for item in envelopes] == payloads
    assert all(Envelope.from_json(item.to_json()) == item for item in envelopes)


def test_one_payload_is_signed_as_ever_and_none_is_signed_not_at_all() -> None:
    assert seal_together([b"{}"], TYPE, SIGNER) == [seal(b"{}", TYPE, SIGNER)]
    assert seal_together([], TYPE, SIGNER) == []


def test_no_payload_can_stand_in_the_place_of_another() -> None:
    envelopes = seal_together(PAYLOADS, TYPE, SIGNER)
    for at, envelope in enumerate(envelopes):
        for other in range(len(PAYLOADS)):
            borrowed = replace(envelope, payload=PAYLOADS[other])
            if other != at:
                assert refused(borrowed) == "SIGNATURE_REFUSED"


def test_every_change_of_a_place_is_refused() -> None:
    envelope = seal_together(PAYLOADS, TYPE, SIGNER)[2]
    assert envelope.place is not None
    number, size, path = envelope.place
    for place in (
        None,
        Place(number + 1, size, path),
        Place(number, size + 1, path),
        Place(number, size, bytes([path[0] ^ 1]) + path[1:]),
        Place(number, size, path[32:] + path[:32]),
    ):
        assert refused(replace(envelope, place=place)) == "SIGNATURE_REFUSED"
    for place in (
        Place(number, size, path[:-1]),
        Place(number, size, path[:-32]),
        Place(number, size, path + path[:32]),
        Place(number, 2, path),
        Place(-1, size, path),
        Place(size, size, path),
        Place(0, 1, b""),
        Place(0, 0, b""),
        Place(0, LEAVES_MAX + 1, path * 8),
    ):
        assert refused(replace(envelope, place=place)) == "ENVELOPE_MALFORMED"


@pytest.mark.parametrize(
    "batch",
    [
        "null",
        "[]",
        "{}",
        '{"number":true,"path":"","size":2}',
        '{"number":0,"path":"","size":2.0}',
        '{"number":0,"path":null,"size":2}',
        '{"number":0,"path":"","size":2,"more":1}',
        '{"size":2,"number":0,"path":""}',
    ],
)
def test_a_place_has_one_spelling(batch: str) -> None:
    text = seal(b"{}", TYPE, SIGNER).to_json().replace('"}]}', f'","batch":{batch}}}]}}')
    with pytest.raises(SignatureRefused) as error:
        open_envelope(text, verifier(), TYPE)
    assert error.value.code == "ENVELOPE_MALFORMED"


def test_a_payload_that_was_signed_as_one_type_is_refused_as_another() -> None:
    envelope = seal_together(PAYLOADS, "application/vnd.other+json", SIGNER)[0]
    assert refused(envelope) == "PAYLOAD_TYPE"
    assert refused(replace(envelope, payload_type=TYPE)) == "SIGNATURE_REFUSED"


def test_what_is_signed_for_several_is_no_payload_of_its_own() -> None:
    envelope = seal_together(PAYLOADS, TYPE, SIGNER)[0]
    root, _ = plant([pae(TYPE, payload) for payload in PAYLOADS])
    bare = Envelope(b"%d\n%b" % (len(PAYLOADS), root), BATCH_PAYLOAD_TYPE, SIGNER.key_id, envelope.signature)
    assert refused(bare) == "PAYLOAD_TYPE"
    assert refused(replace(bare, payload_type=TYPE)) == "SIGNATURE_REFUSED"


def test_a_node_of_the_tree_does_not_pass_for_a_leaf() -> None:
    leaves = [b"a", b"b", b"c", b"d"]
    root, places = plant(leaves)
    left = b"".join(hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves[:2])
    assert root_from(left, Place(0, 2, places[0].path[32:])) != root


def test_a_root_that_was_good_once_excuses_no_other_signature_or_key() -> None:
    envelope = seal_together(PAYLOADS, TYPE, SIGNER)[0]
    pinned = verifier()
    assert open_envelope(envelope.to_json(), pinned, TYPE) == PAYLOADS[0]
    flipped = bytes([envelope.signature[0] ^ 1]) + envelope.signature[1:]
    for forged in (replace(envelope, signature=flipped), replace(envelope, key_id=KeyId("0" * 16))):
        with pytest.raises(SignatureRefused):
            open_envelope(forged.to_json(), pinned, TYPE)
    assert open_envelope(envelope.to_json(), pinned, TYPE) == PAYLOADS[0]


def test_what_was_refused_once_is_refused_again() -> None:
    envelope = replace(seal_together(PAYLOADS, TYPE, SIGNER)[0], signature=bytes(64))
    pinned = verifier()
    for _ in range(2):
        with pytest.raises(SignatureRefused):
            open_envelope(envelope.to_json(), pinned, TYPE)
