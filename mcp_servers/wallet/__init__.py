"""The wallet room: reads accounts on an EVM chain. This release holds no key and sends nothing."""
