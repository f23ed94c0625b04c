#!/bin/sh
# What Ray starts in the place of HAProxy, with HAProxy's arguments (see haproxy_wrapper.py).
exec "$ENGINEHOUSE_PYTHON" -I -S "${0%.sh}.py" "$@"
