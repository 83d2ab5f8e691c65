-- Refuses JSON bodies and queries that the transcoder would read in more than one way. Of a body it takes the last of two
-- values of a key, drops null in a list, flattens a list in a list, and makes a list of one object. It also takes unquoted
-- keys, single quotes and commas before an end. Of a query it takes the last of two values of a parameter, and prefers the
-- query to the path and to the body. The tables before this text come from the protos: ROUTES has for each verb {path, type,
-- fields of the path, what the body is}, TYPES the fields of each message by both of their names.

local MAX_DEPTH = 32
local WHITE = "[^ \t\r\n]"

local function refuse(path, text, otherwise)
  error({ message = (path:find("^[%w_.%[%]-]+$") and path or otherwise or "body") .. ": " .. text })
end

local function malformed(at)
  refuse("body", "not well-formed JSON at byte " .. at)
end

local function skip(text, at)
  return text:find(WHITE, at) or #text + 1
end

local ESCAPED = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function plain(code)
  local number = tonumber(code, 16)
  return number < 128 and string.char(number) or "\\u" .. code:lower()
end

-- Returns the text of a string that begins at `at`, and the place behind it.
local function read_string(text, at)
  local from, escapes = at + 1, false
  while true do
    local stop = text:find('["\\%z\1-\31]', from)
    local found = stop and text:sub(stop, stop)
    if found == '"' then
      local raw = text:sub(at + 1, stop - 1)
      if escapes then
        raw = raw:gsub("\\(u?)(%x?%x?%x?%x?)(.?)", function(u, code, rest)
          if u == "u" then
            return plain(code) .. rest
          end
          return nil
        end)
        raw = raw:gsub("\\([\"\\/bfnrt])", ESCAPED)
      end
      return raw, stop + 1
    elseif found ~= "\\" then
      malformed(stop or #text)
    elseif text:find("^u%x%x%x%x", stop + 1) then
      from = stop + 6
    elseif ESCAPED[text:sub(stop + 1, stop + 1)] then
      from = stop + 2
    else
      malformed(stop)
    end
    escapes = true
  end
end

local NUMBERS = { "^-?%d+$", "^-?%d+%.%d+$", "^-?%d+[eE][+-]?%d+$", "^-?%d+%.%d+[eE][+-]?%d+$" }

local function read_scalar(text, at)
  local word = text:match("^%a+", at)
  if word == "true" or word == "false" or word == "null" then
    return at + #word
  end
  local number = text:match("^[-+%.%deE]+", at)
  if number and not number:find("^-?0%d") then
    for _, pattern in ipairs(NUMBERS) do
      if number:find(pattern) then
        return at + #number
      end
    end
  end
  malformed(at)
end

local KINDS = { ["{"] = "object", ["["] = "list", n = "null" }

local function check_kind(kind, field, is_element, path)
  if is_element and kind == "null" then
    refuse(path, "null is not allowed in a list; leave the element out")
  elseif is_element and kind == "list" then
    refuse(path, "a list is not allowed in a list")
  elseif field == nil or kind == "null" then
    return
  elseif field.list and not is_element then
    if kind ~= "list" then
      refuse(path, "must be a list")
    end
  elseif kind == "list" then
    refuse(path, "must be one value, not a list")
  elseif field.type and kind ~= "object" then
    refuse(path, "must be an object")
  elseif not field.type and kind == "object" then
    refuse(path, "must not be an object")
  end
end

local read_value

local function read_object(text, at, kind, path, depth, in_path)
  local fields, seen = kind and TYPES[kind] or {}, {}
  at = skip(text, at + 1)
  if text:sub(at, at) == "}" then
    return at + 1
  end
  while true do
    if text:sub(at, at) ~= '"' then
      malformed(at)
    end
    local key
    key, at = read_string(text, at)
    local field = fields[key]
    local name = field and field.name or key
    local inner = path == "" and name or path .. "." .. name
    if seen[name] then
      refuse(inner, "occurs twice")
    end
    seen[name] = true
    at = skip(text, at)
    if text:sub(at, at) ~= ":" then
      malformed(at)
    end
    at = skip(text, at + 1)
    if in_path and in_path[name] and text:sub(at, at) == '"' and read_string(text, at) ~= in_path[name] then
      refuse(inner, "differs from the value in the path")
    end
    at = skip(text, read_value(text, at, field, false, inner, depth))
    local sign = text:sub(at, at)
    if sign == "}" then
      return at + 1
    elseif sign ~= "," then
      malformed(at)
    end
    at = skip(text, at + 1)
  end
end

local function read_list(text, at, field, path, depth)
  at = skip(text, at + 1)
  if text:sub(at, at) == "]" then
    return at + 1
  end
  local index = 0
  while true do
    at = skip(text, read_value(text, at, field, true, path .. "[" .. index .. "]", depth))
    index = index + 1
    local sign = text:sub(at, at)
    if sign == "]" then
      return at + 1
    elseif sign ~= "," then
      malformed(at)
    end
    at = skip(text, at + 1)
  end
end

read_value = function(text, at, field, is_element, path, depth)
  local first = text:sub(at, at)
  check_kind(KINDS[first] or "scalar", field, is_element, path)
  if depth == MAX_DEPTH then
    refuse("body", "nested more than " .. MAX_DEPTH .. " deep")
  elseif first == "{" then
    return read_object(text, at, field and field.type, path, depth + 1)
  elseif first == "[" then
    return read_list(text, at, field, path, depth + 1)
  elseif first == '"' then
    local _, behind = read_string(text, at)
    return behind
  end
  return read_scalar(text, at)
end

local function read_body(text, kind, in_path)
  local at = skip(text, 1)
  if at > #text then
    return
  elseif text:sub(at, at) ~= "{" then
    refuse("body", "must be one JSON object")
  end
  at = skip(text, read_object(text, at, kind, "", 1, in_path))
  if at <= #text then
    malformed(at)
  end
end

local function decoded(text)
  local spaced = text:gsub("+", " ")
  return (spaced:gsub("%%(%x%x)", function(code)
    return string.char(tonumber(code, 16))
  end))
end

-- Returns a field by its place in a query, such as `preferences.cabin`: its place by the protos' names, and what TYPES
-- says of it; nothing for a place that does not exist, which the transcoder refuses.
local function field_at(kind, place)
  local fields, field, path = TYPES[kind], nil, nil
  for name in place:gmatch("[^.]+") do
    field = fields and fields[name]
    if field == nil then
      return nil
    end
    path = path and path .. "." .. field.name or field.name
    fields = field.type and TYPES[field.type]
  end
  return path, field
end

-- Names each parameter as the caller wrote it.
local function read_query(query, route)
  local seen, in_path = {}, {}
  for _, name in ipairs(route.fields) do
    in_path[name] = true
  end
  for pair in query:gmatch("[^&]+") do
    local place = decoded(pair:match("^[^=]*"))
    local path, field = field_at(route.type, place)
    path = path or place
    if place == "" then
      refuse("query", "a parameter has no name")
    elseif in_path[path] then
      refuse(place, "is in the path already; leave it out of the query", "query")
    elseif route.body ~= "none" then
      refuse(place, "is not allowed in the query; put it into the body", "query")
    elseif seen[path] and not (field and field.list) then
      refuse(place, "occurs twice", "query")
    end
    seen[path] = true
  end
end

-- Returns the route, and the values in the path; nothing for a path that no RPC has. A slash at the end changes nothing,
-- as it changes nothing for the transcoder.
local function route_of(verb, path)
  for _, route in ipairs(ROUTES[verb] or {}) do
    local values = { path:match(route.path) }
    if values[1] then
      local in_path = {}
      for index, name in ipairs(route.fields) do
        -- A value with a percent sign is the transcoder's to compare.
        if not values[index]:find("%", 1, true) then
          in_path[name] = values[index]
        end
      end
      return route, in_path
    end
  end
end

-- Whether the transcoder leaves the request alone, by the same two forms of the content type that it knows.
local function is_grpc(content_type)
  return content_type == "application/grpc" or content_type:find("application/grpc+", 1, true) == 1
end

local function check(handle, read, ...)
  local is_strict, problem = pcall(read, ...)
  if not is_strict then
    local message = type(problem) == "table" and problem.message or "body: not valid JSON"
    handle:respond({ [":status"] = "400" }, message)
  end
  return is_strict
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local verb = headers:get(":method")
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  if (verb == "GET" and query == "") or is_grpc(headers:get("content-type") or "") then
    return
  end
  local route, in_path = route_of(verb, path)
  if route == nil or not check(handle, read_query, query, route) or route.body ~= "json" then
    return
  end
  local body = handle:body()
  if body ~= nil and body:length() > 0 then
    check(handle, read_body, body:getBytes(0, body:length()), route.type, in_path)
  end
end
