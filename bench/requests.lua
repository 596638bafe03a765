-- wrk's part of the bench. Arguments: switch | stay, keep | close. Prints one line of JSON when done.
-- switch: each request goes to /a or /b by a fixed random sequence, so half of them change endpoint on their connection.
local requests, i = {}, 0

function init(args)
   local headers = { ["Host"] = wrk.headers["Host"] }
   if args[2] == "close" then headers["Connection"] = "close" end
   math.randomseed(7)
   for k = 1, 997 do
      local path = "/a"
      if args[1] == "switch" and math.random(2) == 1 then path = "/b" end
      requests[k] = wrk.format("GET", path, headers)
   end
end

function request()
   i = i % 997 + 1
   return requests[i]
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '\n{"requests":%d,"seconds":%.6f,"bytes":%d,"p50_us":%d,"p99_us":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
      summary.requests, summary.duration / 1e6, summary.bytes, latency:percentile(50), latency:percentile(99),
      e.connect, e.read, e.write, e.status, e.timeout))
end
