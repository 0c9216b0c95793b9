from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from tests.bus_support import BUNDLED, server_of, settings_for, short_home
from trading.adapters.config import DeskHome
from trading.adapters.embedded_redis import open_redis, provision_agent
from trading.adapters.redis_acl import acl_rules
from trading.adapters.redis_client import call
from trading.domain.errors import ConfigurationError

XADD = ("*", "e", "x")

#: user -> (what it may do, what it may not); keys are written without the desk's prefix, after a "@".
CASES = {
    "market": (
        [("XADD", "@market:book:binance:BTC/USDT", *XADD), ("HSET", "@market:instruments", "a", "b")],
        [
            ("XADD", "@events:system", *XADD),
            ("XADD", "@risk:heartbeat", *XADD),
            ("XADD", "@vote:in:ann", *XADD),
            ("GET", "@execution:x"),
            ("FLUSHALL",),
            ("KEYS", "*"),
        ],
    ),
    "risk": (
        [
            ("XADD", "@risk:heartbeat", *XADD),
            ("XADD", "@events:risk", "MAXLEN", "~", "10", *XADD),
            ("XADD", "@events:system", *XADD),
            ("XREVRANGE", "@market:book:binance:BTC/USDT", "+", "-", "COUNT", "1"),
            ("XREAD", "COUNT", "1", "STREAMS", "@execution:heartbeat", "@events:trading", "0", "0"),
            ("SET", "@relay:risk", "1", "GET"),
            ("XGROUP", "CREATE", "@events:trading", "risk", "0", "MKSTREAM"),
            ("XREADGROUP", "GROUP", "risk", "one", "STREAMS", "@events:trading", ">"),
        ],
        [
            ("XADD", "@events:trading", *XADD),
            ("XADD", "@events:coordination", *XADD),
            ("XADD", "@market:trade:binance:BTC/USDT", *XADD),
            ("XADD", "@execution:heartbeat", *XADD),
            ("DEL", "@events:risk"),
            ("XTRIM", "@events:risk", "MAXLEN", "0"),
            ("SET", "@relay:execution", "1"),
            ("EVAL", "return 1", "0"),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
            ("SHUTDOWN",),
        ],
    ),
    "execution": (
        [
            ("XADD", "@execution:heartbeat", *XADD),
            ("XADD", "@events:trading", *XADD),
            ("XREAD", "COUNT", "1", "STREAMS", "@risk:heartbeat", "0"),
        ],
        [
            ("XADD", "@risk:heartbeat", *XADD),
            ("XADD", "@events:risk", *XADD),
            ("XADD", "@market:trade:binance:BTC/USDT", *XADD),
            ("XADD", "@vote:out", *XADD),
        ],
    ),
    "coordinator": (
        [
            ("XADD", "@vote:out", *XADD),
            ("SET", "@vote:lock", "me"),
            ("XADD", "@events:coordination", *XADD),
            ("XREAD", "COUNT", "1", "STREAMS", "@vote:in:ann", "@vote:in:bob", "0", "0"),
            ("XTRIM", "@vote:in:ann", "MAXLEN", "100"),
            ("EVAL", "return redis.call('GET', KEYS[1])", "1", "@vote:lock"),
        ],
        [
            ("XADD", "@vote:in:ann", *XADD),
            ("EVAL", "return redis.call('XADD', KEYS[1], '*', 'e', 'x')", "1", "@vote:in:ann"),
            ("XADD", "@risk:heartbeat", *XADD),
            ("XADD", "@events:trading", *XADD),
            ("XADD", "@market:book:binance:BTC/USDT", *XADD),
        ],
    ),
    "wallet": (
        [("XADD", "@events:system", *XADD), ("SET", "@wallet:x", "1")],
        [("XADD", "@events:trading", *XADD), ("SET", "@execution:x", "1"), ("GET", "@vote:lock")],
    ),
    "console": (
        [("XREVRANGE", "@events:trading", "+", "-"), ("GET", "@vote:lock"), ("XLEN", "@vote:in:ann")],
        [("XADD", "@events:system", *XADD), ("SET", "@console:x", "1"), ("DEL", "@vote:lock"), ("FLUSHDB",)],
    ),
    "agent-ann": (
        [
            ("XADD", "@vote:in:ann", *XADD),
            ("XREAD", "COUNT", "1", "STREAMS", "@vote:out", "0"),
            ("XREVRANGE", "@market:book:binance:BTC/USDT", "+", "-"),
            ("HGETALL", "@market:instruments"),
            ("TIME",),
        ],
        [
            ("XADD", "@vote:in:bob", *XADD),
            ("XADD", "@vote:in:ann2", *XADD),
            ("XADD", "@vote:out", *XADD),
            ("XADD", "@market:book:binance:BTC/USDT", *XADD),
            ("XADD", "@events:coordination", *XADD),
            ("XREVRANGE", "@vote:in:bob", "+", "-"),
            ("XREVRANGE", "@vote:in:ann", "+", "-"),
            ("XREVRANGE", "@events:risk", "+", "-"),
            ("XTRIM", "@vote:in:ann", "MAXLEN", "0"),
            ("DEL", "@vote:in:ann"),
            ("GET", "@vote:lock"),
            ("EVAL", "return 1", "0"),
            ("FLUSHALL",),
        ],
    ),
}


@pytest.fixture
async def home() -> AsyncIterator[DeskHome]:
    with short_home() as made:
        await provision_agent(made, settings_for(made), "ann")
        yield made


@pytest.mark.parametrize("user", CASES)
async def test_user_may_do_its_own_work_and_nothing_else(home: DeskHome, user: str):
    settings = settings_for(home)
    allowed, refused = CASES[user]
    async with open_redis(home, settings, user, bus=BUNDLED) as redis:
        for command in allowed:
            await call(redis, *_keyed(command, settings.key("")))
        for command in refused:
            with pytest.raises((NoPermissionError, ResponseError)) as caught:
                await call(redis, *_keyed(command, settings.key("")))
            assert _is_refusal(caught.value), (command, caught.value)


def _keyed(command: tuple[str, ...], prefix: str) -> list[str]:
    return [prefix + word[1:] if word.startswith("@") else word for word in command]


def _is_refusal(error: Exception) -> bool:
    # Inside a script the refusal arrives as the script's error.
    return isinstance(error, NoPermissionError) or "No permissions" in str(error) or "ACL failure" in str(error)


async def test_rules_of_another_desk_do_not_open_this_one(home: DeskHome):
    settings = settings_for(home)
    async with open_redis(home, settings, "market", bus=BUNDLED) as redis:
        with pytest.raises(NoPermissionError):
            await call(redis, "SET", "grekko:{other}:market:x", "1")
    assert not server_of(home).alive()


def test_unknown_user_has_no_rules():
    with pytest.raises(ConfigurationError):
        acl_rules("root", "grekko:{desk}:")
