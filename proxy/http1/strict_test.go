package http1

import (
	"net"
	"strings"
	"sync"
	"testing"
)

// odd is a request that must be refused, or must not.
type odd struct {
	name   string
	raw    string
	status int    // 200: accepted
	code   string // of the refusal
}

// oddRequests is also what further readers of HTTP are asked about.
var oddRequests = []odd{
	{"plain", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", 200, ""},
	{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: h\r\n\r\n", 200, ""},
	{"empty value", "GET / HTTP/1.1\r\nHost: h\r\nA:\r\n\r\n", 200, ""},
	{"obs-text", "GET / HTTP/1.1\r\nHost: h\r\nA: \xe4\r\n\r\n", 200, ""},
	{"tab in value", "GET / HTTP/1.1\r\nHost: h\r\nA: a\tb\r\n\r\n", 200, ""},
	{"host with port", "GET / HTTP/1.1\r\nHost: h:80\r\n\r\n", 200, ""},
	{"IPv6 host", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200, ""},
	{"host with the last port", "GET / HTTP/1.1\r\nHost: h:65535\r\n\r\n", 200, ""},
	{"letters after a percent", "GET /%aF%fA HTTP/1.1\r\nHost: h\r\n\r\n", 200, ""},
	{"connection without options", "GET / HTTP/1.1\r\nHost: h\r\nConnection: ,keep-alive, ,\r\n\r\n", 200, ""},
	{"host of all that may stand there", "GET / HTTP/1.1\r\nHost: azAZ09-._~!$&'()*+,;=\r\n\r\n", 200, ""},
	{"bad percent in query", "GET /?a=%zz HTTP/1.1\r\nHost: h\r\n\r\n", 200, ""},
	{"absolute-form", "GET http://h/x HTTP/1.1\r\nHost: h\r\n\r\n", 200, ""},
	{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 200, ""},
	{"body", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 200, ""},
	{"chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200, ""},
	{"chunk sizes in letters", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\nF\r\n0123456789abcde\r\n0\r\n\r\n", 200, ""},
	{"chunked in capitals", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n", 200, ""},
	{"chunk extension", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n", 200, ""},
	{"chunk extensions of every form", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a;b=c;d=\"e\\\"; =\t\";f\r\nabc\r\n0\r\n\r\n", 200, ""},
	{"longest extension", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;" + strings.Repeat("a", 128) + "\r\nabc\r\n0\r\n\r\n", 200, ""},
	{"trailer", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", 200, ""},

	{"bare LF after request line", "GET / HTTP/1.1\nHost: h\r\n\r\n", 400, "bare_lf"},
	{"bare LF after field", "GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n", 400, "bare_lf"},
	{"bare LF at end", "GET / HTTP/1.1\r\nHost: h\r\n\n", 400, "bare_lf"},
	{"bare CR in value", "GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n", 400, "control_byte"},
	{"CR CR LF", "GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", 400, "control_byte"},
	{"bare CR in request line", "GET /\r HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"leading empty line", "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "request_line"},
	{"PROXY protocol 1", "PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "proxy_header"},
	{"PROXY protocol 1, unknown", "PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "proxy_header"},
	{"PROXY protocol 2", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "proxy_header"},
	{"a method PROXY", "PROXY /TCP4 HTTP/1.1\r\nHost: h\r\n\r\n", 200, ""},
	{"obs-fold", "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400, "obs_fold"},
	{"white space before first field", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400, "obs_fold"},
	{"space before colon", "GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400, "space_before_colon"},
	{"tab before colon", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length\t: 3\r\n\r\nabc", 400, "space_before_colon"},
	{"no colon", "GET / HTTP/1.1\r\nHost: h\r\nnonsense\r\n\r\n", 400, "field_name"},
	{"empty name", "GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n", 400, "field_name"},
	{"name no token", "GET / HTTP/1.1\r\nHost: h\r\nA(b): x\r\n\r\n", 400, "field_name"},
	{"name not ASCII", "GET / HTTP/1.1\r\nHost: h\r\nTr\xc3\xa4: x\r\n\r\n", 400, "field_name"},
	{"NUL in name", "GET / HTTP/1.1\r\nHost: h\r\nA\x00: x\r\n\r\n", 400, "field_name"},
	{"NUL in value", "GET / HTTP/1.1\r\nHost: h\r\nA: x\x00\r\n\r\n", 400, "control_byte"},
	{"DEL in value", "GET / HTTP/1.1\r\nHost: h\r\nA: x\x7fxxxxxxxxxxx\r\n\r\n", 400, "control_byte"},
	{"ESC in value", "GET / HTTP/1.1\r\nHost: h\r\nA: 0123456789\x1b[0m\r\n\r\n", 400, "control_byte"},

	{"no version", "GET /\r\nHost: h\r\n\r\n", 400, "request_line"},
	{"two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "request_line"},
	{"space in target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400, "request_line"},
	{"tab for space", "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, "method"},
	{"space after version", "GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400, "request_line"},
	{"lower-case version", "GET / http/1.1\r\nHost: h\r\n\r\n", 400, "request_line"},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505, "version"},
	{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505, "version"},
	{"HTTP/1.x", "GET / HTTP/1.x\r\nHost: h\r\n\r\n", 400, "request_line"},
	{"HTTP/1.10", "GET / HTTP/1.10\r\nHost: h\r\n\r\n", 400, "request_line"},
	{"method no token", "G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "method"},
	{"long method", strings.Repeat("A", 33) + " / HTTP/1.1\r\nHost: h\r\n\r\n", 501, "method_long"},
	{"CONNECT", "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 501, "connect"},
	{"TLS on cleartext", "\x16\x03\x01\x02\x00\x01\n\r\n", 400, "bare_lf"},

	{"target without slash", "GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"asterisk with GET", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"fragment", "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"control byte in target", "GET /a\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"target not ASCII", "GET /\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"bad percent in path", "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"bad second digit of a percent", "GET /%4z HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"cut percent in path", "GET /%4 HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"absolute-form of another host", "GET http://g/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, "host_differs"},
	{"absolute-form with user", "GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"absolute-form of another scheme", "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},
	{"absolute-form without host", "GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target"},

	{"no host", "GET / HTTP/1.1\r\n\r\n", 400, "host_count"},
	{"no host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 400, "host_count"},
	{"two hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400, "host_count"},
	{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "host"},
	{"host with slash", "GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", 400, "host"},
	{"host with user", "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400, "host"},
	{"host with space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "host"},
	{"host with brace", "GET / HTTP/1.1\r\nHost: h{\r\n\r\n", 400, "host"},
	{"host with backquote", "GET / HTTP/1.1\r\nHost: `h\r\n\r\n", 400, "host"},
	{"host with port of six digits", "GET / HTTP/1.1\r\nHost: h:000080\r\n\r\n", 400, "host"},
	{"host with bad port", "GET / HTTP/1.1\r\nHost: h:x\r\n\r\n", 400, "host"},
	{"host with large port", "GET / HTTP/1.1\r\nHost: h:65536\r\n\r\n", 400, "host"},
	{"host with empty port", "GET / HTTP/1.1\r\nHost: h:\r\n\r\n", 400, "host"},
	{"host of brackets", "GET / HTTP/1.1\r\nHost: [h]\r\n\r\n", 400, "host"},
	{"text after brackets", "GET / HTTP/1.1\r\nHost: [::1]x80\r\n\r\n", 400, "host"},
	{"host with zone", "GET / HTTP/1.1\r\nHost: [fe80::1%25e0]\r\n\r\n", 400, "host"},

	{"two lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "content_length"},
	{"two different lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400, "content_length"},
	{"no length and another", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 3\r\n\r\nabc", 400, "content_length"},
	{"length list", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\nabc", 400, "content_length"},
	{"plus length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc", 400, "content_length"},
	{"minus length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -3\r\n\r\nabc", 400, "content_length"},
	{"empty length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", 400, "content_length"},
	{"hex length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x3\r\n\r\nabc", 400, "content_length"},
	{"letter in length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3a\r\n\r\nabc", 400, "content_length"},
	{"leading zero", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 03\r\n\r\nabc", 400, "content_length"},
	{"huge length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775808\r\n\r\n", 400, "content_length"},
	{"length and coding", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "length_and_coding"},
	{"coding and length", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, "length_and_coding"},
	{"no length and coding", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "length_and_coding"},
	{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding_1_0"},
	{"gzip, chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "transfer_coding"},
	{"gzip", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "transfer_encoding"},
	{"identity", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n", 400, "transfer_encoding"},
	{"nothing, chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: , chunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"},
	{"gzip, nothing, chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip,, chunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"},
	{"identity, chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity, chunked\r\n\r\n", 400, "transfer_encoding"},
	{"chunked twice", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"},
	{"two codings", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"},
	{"hidden second coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"},
	{"xchunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"},
	{"vertical tab before chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 400, "control_byte"},
	{"chunked with parameter", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;a\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"},
	{"quoted chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"},
	{"trailer announces length", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X, Content-Length\r\n\r\n0\r\n\r\n", 400, "trailer"},
	{"empty coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n", 400, "transfer_encoding"},

	{"other expectation", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\nContent-Length: 3\r\n\r\nabc", 417, "expect"},
	{"connection option no token", "GET / HTTP/1.1\r\nHost: h\r\nConnection: a b\r\n\r\n", 400, "connection_option"},
	{"connection names host", "GET / HTTP/1.1\r\nHost: h\r\nConnection: Host\r\n\r\n", 400, "connection_names_field"},
	{"connection names length", "POST / HTTP/1.1\r\nHost: h\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc", 400, "connection_names_field"},
	{"connection names authorization", "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, Authorization\r\n\r\n", 400, "connection_names_field"},
	{"connection names x-forwarded-for", "GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Forwarded-For\r\n\r\n", 400, "connection_names_field"},

	{"chunk size no hex", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n", 400, "chunk"},
	{"chunk size empty", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n", 400, "chunk"},
	{"chunk size 0x", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 400, "chunk"},
	{"chunk size negative", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400, "chunk"},
	{"chunk size too long", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0000000000000003\r\nabc\r\n0\r\n\r\n", 400, "chunk_size"},
	{"chunk size overflow", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n", 400, "chunk_size"},
	{"space after chunk size", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", 400, "chunk"},
	{"bare LF after chunk size", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", 400, "chunk"},
	{"CR without LF after chunk size", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\rabc\r\n0\r\n\r\n", 400, "chunk"},
	{"bare LF after chunk", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n", 400, "chunk"},
	{"chunk longer than its size", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400, "chunk"},
	{"bare LF in extension", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"extension without a name", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"extension of a value", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;=a\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"extension without a value", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"space in an extension", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3; a=b\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"quote without an end", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"quote ended by a backslash", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\\\"\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"text after a quote", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\"c\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"two values in an extension", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b=c\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"quote in a name", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a\"b\"\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"control byte in a quote", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"\x01b\"\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"DEL in a quote", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"\x7f\"\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"extension not ASCII", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;\xe4\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"two CR after an extension", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a\r\r\nabc\r\n0\r\n\r\n", 400, "chunk"},
	{"long extension", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;" + strings.Repeat("a", 129) + "\r\nabc\r\n0\r\n\r\n", 400, "chunk_extension"},
	{"bare LF in trailer", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n", 400, "bare_lf"},
	{"bare LF at the end of trailers", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n", 400, "bare_lf"},

	{"long target", "GET /" + strings.Repeat("a", 8192) + " HTTP/1.1\r\nHost: h\r\n\r\n", 414, "target_bytes"},
	{"endless target", "GET /" + strings.Repeat("a", 9000), 414, "target_bytes"},
	{"large head", "GET / HTTP/1.1\r\nHost: h\r\nA: " + strings.Repeat("a", 33000) + "\r\n\r\n", 431, "header_bytes"},
	{"endless head", "GET / HTTP/1.1\r\nHost: h\r\nA: " + strings.Repeat("a", 33000), 431, "header_bytes"},
	{"many fields", "GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("A: b\r\n", 100) + "\r\n", 431, "header_count"},
}

// TestOddRequestIsRefusedWithItsStatus sends each odd request through a server
// that forwards, with another request behind it: a refusal has its status and
// Connection: close, and nothing of what follows is read as a request. TLS is read in
// another way than a socket, and the second request of a connection in another way than
// the first.
func TestOddRequestIsRefusedWithItsStatus(t *testing.T) {
	settled(t)
	var mu sync.Mutex
	codes := map[string]string{} // by client address
	up := scripted(t, echoing)
	pool := upstreamTo(t, up.addr())
	server := func() *Server {
		return &Server{
			Handler: func(x *Exchange) {
				res, err := x.Forward(pool, nil)
				if status := answerStatus(res, err); status != 0 {
					refusal, ok := err.(*ProtocolError) //nolint:errorlint // it is not wrapped
					if ok {
						mu.Lock()
						codes[x.Conn().RemoteAddr().String()] = refusal.Code
						mu.Unlock()
					}
					_ = x.Respond(status, nil, nil)
				}
			},
			Refused: func(r Refusal) Answer {
				mu.Lock()
				defer mu.Unlock()
				codes[r.Remote.String()] = r.Code
				return Answer{}
			},
		}
	}
	addr, dialTLS := start(t, server()), startTLS(t, server())
	for name, by := range map[string]struct {
		dial  func() *client
		first string
	}{
		"first":          {func() *client { return dial(t, addr) }, ""},
		"later":          {func() *client { return dial(t, addr) }, get},
		"first over TLS": {dialTLS, ""},
		"later over TLS": {dialTLS, get},
	} {
		for _, o := range oddRequests {
			t.Run(name+"/"+o.name, func(t *testing.T) {
				c := by.dial()
				if by.first != "" {
					c.send(by.first).want("GET", 200, "GET / h 0 ")
				}
				c.send(o.raw)
				if o.status != 200 {
					// A refused request may have no end, so nothing is sent behind it.
					_ = c.nc.(interface{ CloseWrite() error }).CloseWrite()
				}
				resp, _ := c.answer("GET")
				mu.Lock()
				code := codes[c.nc.LocalAddr().String()]
				delete(codes, c.nc.LocalAddr().String()) // its port may be another's later
				mu.Unlock()
				if resp.StatusCode != o.status || code != o.code {
					t.Errorf("status %d, code %q; want %d, %q", resp.StatusCode, code, o.status, o.code)
				}
				if o.status != 200 {
					if !resp.Close {
						t.Error("refused without Connection: close")
					}
					c.wantEnd()
					return
				}
				if !resp.Close {
					c.send("GET /next HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, "GET /next h 0 ")
				}
			})
		}
	}
}

// TestHeadSurvivesAnySplit sends heads byte by byte and in two parts, as the first and as
// the second request.
func TestHeadSurvivesAnySplit(t *testing.T) {
	raw := "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
	up := scripted(t, echoing)
	server := func() *Server { return &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)} }
	addr, dialTLS := start(t, server()), startTLS(t, server())
	for name, dial := range map[string]func() *client{
		"cleartext": func() *client {
			c := dial(t, addr)
			_ = c.nc.(*net.TCPConn).SetNoDelay(true)
			return c
		},
		"TLS": dialTLS,
	} {
		t.Run(name, func(t *testing.T) {
			for i := 1; i < len(raw); i++ {
				c := dial()
				for range 2 {
					c.send(raw[:i]).send(raw[i:])
					c.want("POST", 200, "POST /a h 3 abc")
				}
			}
			c := dial()
			for range 2 {
				for i := range len(raw) {
					c.send(raw[i : i+1])
				}
				c.want("POST", 200, "POST /a h 3 abc")
			}
		})
	}
}
