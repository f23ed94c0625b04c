-- wrk's side of a closed loop: sends one body again and again, counts requests by window, and prints what load.py reads.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } moment;
  int clock_gettime(int clock, moment *now);
]]
local MONOTONIC = 1

local now = ffi.new("moment")
local function seconds()
  ffi.C.clock_gettime(MONOTONIC, now)
  return tonumber(now.seconds) + tonumber(now.nanoseconds) * 1e-9
end

local threads = {}
function setup(thread)
  table.insert(threads, thread)
end

-- Each thread has globals of its own, which `done` reads from outside.
function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  wrk.method, wrk.body = "POST", file:read("*a")
  file:close()
  -- Not among the arguments, which others could see.
  local token = os.getenv("ENGINEHOUSE_TOKEN")
  if token and token ~= "" then
    wrk.headers["Authorization"] = "Bearer " .. token
  end
  window, sent = tonumber(arguments[2]), {}
  message = wrk.format()
end

-- wrk asks for the next request of a connection the moment that the answer before it is complete.
function request()
  local time = seconds()
  began = began or time
  local index = math.floor((time - began) / window) + 1
  sent[index] = (sent[index] or 0) + 1
  return message
end

function done(summary, latency, _)
  print(string.format("requests %d", summary.requests))
  print(string.format("microseconds %d", summary.duration))
  for kind, count in pairs(summary.errors) do
    print(string.format("errors %s %d", kind, count))
  end
  for _, thread in ipairs(threads) do
    for index, count in pairs(thread:get("sent")) do
      print(string.format("sent %d %d", index, count))
    end
  end
  for index = 1, #latency do
    print(string.format("latency %d %d", latency(index)))
  end
end
