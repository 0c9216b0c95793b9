"""An EVM chain read through one JSON-RPC node, and the Uniswap pools on it. Nothing here signs or sends."""
