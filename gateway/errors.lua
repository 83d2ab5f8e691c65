-- The last touch on JSON errors, whoever made them: a service, gRPC itself or Envoy.
--   * exactly one ErrorInfo, also where gRPC gave up before the service could say why;
--   * the field's name as BadRequest, where the transcoder only has it in its message;
--   * fields by their names in JSON, which callers of JSON write: the services and the transcoder know the protos' names.
--     A name that is in the query as the protos have it stays, because the caller wrote it so;
--   * the header Retry-After, which HTTP knows, from RetryInfo, which gRPC knows.
-- The table before this text comes from the protos: NAMES has the JSON name of each field whose two names differ.
-- It works on the text, because the standard library that Envoy gives it has no JSON.

local REASONS = {
  -- A process that stops says so of calls that it did not begin.
  [1] = "DEPENDENCY_UNAVAILABLE",
  [3] = "INVALID_FIELD",
  [4] = "DEADLINE_EXCEEDED",
  [7] = "PERMISSION_DENIED",
  [8] = "RATE_LIMITED",
  [14] = "DEPENDENCY_UNAVAILABLE",
  [16] = "UNAUTHENTICATED",
}

local ERROR_INFO = '{"@type":"type.googleapis.com/google.rpc.ErrorInfo",'
  .. '"reason":"%s","domain":"skyhigh","metadata":{}}'
local BAD_REQUEST = '{"@type":"type.googleapis.com/google.rpc.BadRequest",'
  .. '"fieldViolations":[{"field":"%s","description":"%s"}]}'

-- The transcoder's three ways to name a field.
local FIELD_NAMES = {
  'field \\"([%w_.]+)\\"',
  "^([%w_.%[%]-]+): ",
  "on a scalar field for type ([%w_.]+)$",
}

local function field_in(message)
  for _, pattern in ipairs(FIELD_NAMES) do
    local name = message:match(pattern)
    if name then
      return name
    end
  end
  return "body"
end

-- Where the string ends whose text begins at `from`: its closing quote.
local function end_of_string(text, from)
  while true do
    local at = text:find('[\\"]', from)
    if at == nil or text:sub(at, at) == '"' then
      return at
    end
    from = at + 2
  end
end

-- The message as it stands in the text: still escaped, so that it may be put into another string of it.
local function message_in(text)
  local _, before = text:find('"message":"', 1, true)
  local stop = before and end_of_string(text, before + 1)
  return stop and text:sub(before + 1, stop - 1) or ""
end

-- The text with the fields' names in JSON, wherever people read them.
local function with_json_names(text, query)
  local written = {}
  for key in ("&" .. query):gmatch("&([%w_.]+)") do
    for name in key:gmatch("[%w_]+") do
      written[name] = true
    end
  end
  local function json_name(word)
    return not written[word] and NAMES[word] or nil
  end
  for _, key in ipairs({ '"field":"', '"description":"', '"message":"' }) do
    local _, before = text:find(key, 1, true)
    while before do
      local stop = end_of_string(text, before + 1)
      if stop == nil then
        return text
      end
      local renamed = text:sub(before + 1, stop - 1):gsub("[%w_]+", json_name)
      text = text:sub(1, before) .. renamed .. text:sub(stop)
      _, before = text:find(key, before + #renamed + 1, true)
    end
  end
  return text
end

-- Behind the first detail, or as the first one. A function replaces, because in a string % would mean something.
local function add_detail(text, detail)
  local grown, found = text:gsub('"details":%[%]', function()
    return '"details":[' .. detail .. "]"
  end, 1)
  if found == 0 then
    grown = text:gsub('"details":%[%b{}', function(first)
      return first .. "," .. detail
    end, 1)
  end
  return grown
end

local RETRY_INFO = '{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"%ds"}'

-- In seconds, from who refused the call: the gateway service or a block says it outright, and a bucket says when it has
-- something in it again.
local function wait_of(headers)
  local said = headers:get("retry-after") or headers:get("x-ratelimit-reset")
  return math.max(1, math.ceil(tonumber(said) or 1))
end

-- Whoever speaks gRPC learns it from the headers alone, because the answer has no body.
local function is_native_refusal(headers)
  return headers:get("grpc-status") == "8" and headers:get("retry-after") == nil
end

local function is_error(headers)
  return tonumber(headers:get(":status")) >= 400 and headers:get("content-type") == "application/json"
end

-- Kept from the request for its answer, where the query is not to be seen any more.
local KEPT = "skyhigh.errors"

function envoy_on_request(handle)
  local query = handle:headers():get(":path"):match("%?(.+)$")
  if query then
    handle:streamInfo():dynamicMetadata():set(KEPT, "query", query)
  end
end

-- The bucket of calls that nothing counts.
local UNCOUNTED = "4000000000"

function envoy_on_response(handle)
  if handle:headers():get("x-ratelimit-limit") == UNCOUNTED then
    for _, name in ipairs({ "limit", "remaining", "reset" }) do
      handle:headers():remove("x-ratelimit-" .. name)
    end
  end
  -- gRPC-Web is told the HTTP status, which the filter for it takes for UNAVAILABLE.
  local content_type = handle:headers():get("content-type") or ""
  if handle:headers():get(":status") == "429" and content_type:find("application/grpc", 1, true) == 1 then
    handle:headers():replace("grpc-status", "8")
  end
  if is_native_refusal(handle:headers()) then
    handle:headers():add("retry-after", tostring(wait_of(handle:headers())))
    return
  end
  if not is_error(handle:headers()) then
    return
  end
  local wait = wait_of(handle:headers())
  local body = handle:body()
  if body == nil then
    return
  end
  local original = body:getBytes(0, body:length())
  local text = original
  local code = tonumber(text:match('"code":(%d+)'))
  if code == nil then
    return
  end
  if not text:find("google.rpc.ErrorInfo", 1, true) then
    text = add_detail(text, ERROR_INFO:format(REASONS[code] or "INTERNAL"))
  end
  if text:find('"reason":"INVALID_FIELD"', 1, true) and not text:find("google.rpc.BadRequest", 1, true) then
    local message = message_in(text)
    text = add_detail(text, BAD_REQUEST:format(field_in(message), message))
  end
  if text:find("google.rpc.BadRequest", 1, true) then
    local kept = handle:streamInfo():dynamicMetadata():get(KEPT)
    text = with_json_names(text, kept and kept["query"] or "")
  end
  if code == 8 and not text:find("google.rpc.RetryInfo", 1, true) then
    text = add_detail(text, RETRY_INFO:format(wait))
  end
  if text ~= original then
    body:setBytes(text)
  end
  -- The headers of before are void once the body was waited for.
  local headers = handle:headers()
  local delay = text:match('"retryDelay":"([%d.]+)s"')
  if delay and headers:get("retry-after") == nil then
    headers:add("retry-after", string.format("%d", math.max(1, math.ceil(tonumber(delay)))))
  end
end
