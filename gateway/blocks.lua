-- Refuses sources that were found abusing the gateway, from memory. The tables before this text say who: BLOCKED has
-- {until_time, login_only} by source, LOGINS the paths of the RPCs that give a token.

-- `203.0.113.7:4711` or `[2001:db8::1]:4711` as a source: the address, or its /64 network; the same as what
-- `services/addresses.py` counts (tests/gateway/test_blocked_addresses.py).
local function source_of(peer)
  local v6 = peer:match("^%[(.*)%]")
  if v6 == nil then
    return "address:" .. (peer:match("^(.*):%d+$") or peer)
  end
  local mapped = v6:match("^::ffff:(%d+%.%d+%.%d+%.%d+)$")
  if mapped then
    return "address:" .. mapped
  end
  local head, tail = v6:match("^(.-)::(.*)$")
  local groups = {}
  for group in (head or v6):gmatch("%x+") do
    groups[#groups + 1] = group
  end
  if head then
    local behind = select(2, tail:gsub("%x+", ""))
    for _ = 1, 8 - #groups - behind do
      groups[#groups + 1] = "0"
    end
    for group in tail:gmatch("%x+") do
      groups[#groups + 1] = group
    end
  end
  for index = 1, 4 do
    groups[index] = string.format("%04x", tonumber(groups[index] or "0", 16))
  end
  return "address:" .. table.concat(groups, ":", 1, 4) .. "::/64"
end

local function seconds_left(block, path, now)
  if block == nil or (block.login_only and not LOGINS[path]) then
    return 0
  end
  return block.until_time - now
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path, now = headers:get(":path"), os.time()
  local role, subject = headers:get("x-skyhigh-role"), headers:get("x-skyhigh-subject")
  local principal = role and subject and BLOCKED[role .. ":" .. subject]
  local address = BLOCKED[source_of(handle:streamInfo():downstreamRemoteAddress())]
  local left = math.max(seconds_left(principal, path, now), seconds_left(address, path, now))
  if left > 0 then
    handle:respond({[":status"] = "429", ["retry-after"] = tostring(left)}, "blocked")
  end
end
