package http1

// Response is the head of an upstream's answer, as slices of the bytes that
// were read. It is valid only while the function it was handed to runs.
type Response struct {
	Status int
	Minor  int
	Reason []byte
	Fields []Field

	ContentLength int64 // -1 where the head does not say
	Chunked       bool

	head
	options connectionOptions
	upgrade []byte
}

var (
	errStatusLine = &ProtocolError{502, "status_line", "the status line is not HTTP/1.x SP status SP reason (RFC 9112 §4)"}
	errNoContent  = &ProtocolError{502, "no_content_length", "an answer that has no content announces some (RFC 9110 §8.6)"}
	errSwitch     = &ProtocolError{502, "switching", "the upstream switched to a protocol nobody asked for (RFC 9110 §15.2.2)"}
	errInterim    = &ProtocolError{502, "interim_count", "the upstream sent too many interim answers"}
	errAnswerCut  = &ProtocolError{502, "answer_cut", "the upstream closed the connection in the middle of an answer (RFC 9112 §8)"}
)

func (r *Response) reset() {
	r.head.reset()
	r.Status, r.Minor, r.ContentLength = 0, 0, 0
	r.Reason, r.Fields, r.upgrade = nil, nil, nil
	r.Chunked = false
	r.options = connectionOptions{}
}

// parse reads what is there of an answer's head and reports whether it is
// complete. After an incomplete parse it may be called again with more bytes in
// the same memory. Every error has status 502.
func (r *Response) parse(buf []byte, maxBytes, maxCount int) (bool, *ProtocolError) {
	if !r.started {
		text, ok, err := r.nextLine(buf)
		if err != nil {
			return false, asAnswer(err)
		}
		if !ok {
			if len(buf) > maxBytes {
				return false, asAnswer(errHeaderBytes)
			}
			return false, nil
		}
		if err := r.parseLine(text); err != nil {
			return false, err
		}
		r.started, r.firstLF = true, r.pos
	}
	done, err := r.scanFields(buf, maxBytes, maxCount)
	if err != nil {
		return false, asAnswer(err)
	}
	if !done {
		return false, nil
	}
	return true, asAnswer(r.finish())
}

// asAnswer turns what is wrong with a message into what is wrong with an
// upstream's answer.
func asAnswer(err *ProtocolError) *ProtocolError {
	if err == nil || err.Status == 502 {
		return err
	}
	return &ProtocolError{502, err.Code, "in the upstream's answer: " + err.Reason}
}

// parseLine reads the status line (RFC 9112 §4). The space after the status
// may be missing where there is no reason.
func (r *Response) parseLine(text []byte) *ProtocolError {
	if len(text) < len("HTTP/1.1 200") || string(text[:7]) != "HTTP/1." || text[7] != '0' && text[7] != '1' || text[8] != ' ' {
		return errStatusLine
	}
	if !isDigit(text[9]) || !isDigit(text[10]) || !isDigit(text[11]) {
		return errStatusLine
	}
	r.Minor = int(text[7] - '0')
	r.Status = int(text[9]-'0')*100 + int(text[10]-'0')*10 + int(text[11]-'0')
	if r.Status < 100 || r.Status > 599 {
		return errStatusLine
	}
	if len(text) == 12 {
		return nil
	}
	if text[12] != ' ' || !validValue(text[13:]) {
		return errStatusLine
	}
	r.Reason = text[13:]
	return nil
}

// finish judges the head as a whole (RFC 9112 §6.3).
func (r *Response) finish() *ProtocolError {
	r.Fields = r.fields
	var err *ProtocolError
	if r.options, err = r.connection(); err != nil {
		return err
	}
	if r.ContentLength, r.Chunked, err = r.framing(r.Minor); err != nil {
		return err
	}
	for i := range r.lines {
		if r.lines[i].kind == kindUpgrade {
			if r.upgrade != nil && r.Status == 101 {
				return errSwitch
			}
			r.upgrade = r.fields[i].Value
		}
	}
	if r.Status < 200 || r.Status == 204 {
		if r.Chunked || r.ContentLength > 0 {
			return errNoContent
		}
	}
	return nil
}

// bodyless reports whether an answer to the method has no content, whatever its
// fields say (RFC 9112 §6.3).
func (r *Response) bodyless(method []byte) bool {
	return r.Status < 200 || r.Status == 204 || r.Status == 304 || string(method) == "HEAD"
}
