package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// The service of the tests takes and gives strings. Its methods are declared here,
// so that no code has to be generated.
var (
	countdown = &grpc.StreamDesc{StreamName: "Countdown", ServerStreams: true}
	gather    = &grpc.StreamDesc{StreamName: "Gather", ClientStreams: true}
	talk      = &grpc.StreamDesc{StreamName: "Talk", ServerStreams: true, ClientStreams: true}
)

// grpcServer is a real server; cancelled is told of calls whose caller left.
func grpcServer(t testing.TB, creds credentials.TransportCredentials) (at *url.URL, cancelled chan struct{}) {
	t.Helper()
	cancelled = make(chan struct{}, 10)
	server := grpc.NewServer(grpc.Creds(creds))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Words", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Upper", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := &wrapperspb.StringValue{}
			if err := decode(in); err != nil {
				return nil, err
			}
			md, _ := metadata.FromIncomingContext(ctx)
			_ = grpc.SetHeader(ctx, metadata.Pairs("x-account", strings.Join(md["x-token-account"], "+")))
			_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "yes", "x-secret", strings.Join(append(md["authorization"], md["api-token"]...), "+")))
			if in.Value == "fail" {
				return nil, status.Error(codes.FailedPrecondition, "not now: 100 %")
			}
			return wrapperspb.String(strings.ToUpper(in.Value)), nil
		}}},
		Streams: []grpc.StreamDesc{
			{StreamName: countdown.StreamName, ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
				in := &wrapperspb.StringValue{}
				if err := s.RecvMsg(in); err != nil {
					return err
				}
				for i := len(in.Value); i > 0; i-- {
					if err := s.SendMsg(wrapperspb.String(in.Value[:i])); err != nil && in.Value != "wait" {
						return err // else the caller may be gone already
					}
				}
				if in.Value != "wait" {
					return nil
				}
				<-s.Context().Done()
				cancelled <- struct{}{}
				return status.FromContextError(s.Context().Err()).Err()
			}},
			{StreamName: gather.StreamName, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
				var all []string
				for {
					in := &wrapperspb.StringValue{}
					if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
						return s.SendMsg(wrapperspb.String(strings.Join(all, ",")))
					} else if err != nil {
						return err
					}
					all = append(all, in.Value)
				}
			}},
			{StreamName: talk.StreamName, ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
				for {
					in := &wrapperspb.StringValue{}
					if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
						return nil
					} else if err != nil {
						return err
					}
					if err := s.SendMsg(wrapperspb.String("re: " + in.Value)); err != nil {
						return err
					}
				}
			}},
		},
	}, struct{}{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(server.Stop)
	return &url.URL{Scheme: "h2c", Host: ln.Addr().String()}, cancelled
}

// bearer sends a token with each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (b bearer) RequireTransportSecurity() bool { return false }

func grpcClient(t testing.TB, addr string, creds credentials.TransportCredentials, secret string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithPerRPCCredentials(bearer(secret)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestGRPC runs a real client and a real server through the proxy, on cleartext
// and on TLS on both sides.
func TestGRPC(t *testing.T) {
	for _, secured := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secured), func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			policy, faults := enforce.Compile([]enforce.RouteSpec{{Match: "POST /test.Words/{method}", Scopes: []string{"words"}}}, enforce.Options{})
			if faults != nil {
				t.Fatal(faults)
			}
			w.rules.Policy = policy
			serverCreds, clientCreds := insecure.NewCredentials(), insecure.NewCredentials()
			var wrap func(net.Listener) net.Listener
			var config *proxy.ClientTLS
			if secured {
				a := newAuthority(t)
				cert, key := a.issue("upstream.example")
				var err error
				if serverCreds, err = credentials.NewServerTLSFromFile(cert, key); err != nil {
					t.Fatal(err)
				}
				if config, err = proxy.NewClientTLS(proxy.ClientTLSFiles{CAFile: a.file, ServerName: "upstream.example"}); err != nil {
					t.Fatal(err)
				}
				cert, key = a.issue("api.example")
				front, err := proxy.NewServerTLS(proxy.ServerTLSFiles{CertFile: cert, KeyFile: key})
				if err != nil {
					t.Fatal(err)
				}
				wrap = front.Listener
				clientCreds = credentials.NewTLS(a.client())
			}
			upstream, cancelled := grpcServer(t, serverCreds)
			if secured {
				upstream.Scheme = "https"
			}
			w.rules.Default.Upstreams = upstreamsAt(t, config, upstream)
			addr := openProxy(t, w, wrap)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn := grpcClient(t, addr, clientCreds, w.secrets["full"])
			in, out := wrapperspb.String("hello"), &wrapperspb.StringValue{}

			t.Run("unary", func(t *testing.T) {
				var header, trailer metadata.MD
				if err := conn.Invoke(ctx, "/test.Words/Upper", in, out, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil || out.Value != "HELLO" {
					t.Fatal(out.Value, err)
				}
				if header.Get("x-account")[0] != "42" || trailer.Get("x-trailer")[0] != "yes" || trailer.Get("x-secret")[0] != "" {
					t.Errorf("header %v, trailer %v", header, trailer)
				}
			})
			t.Run("large message", func(t *testing.T) {
				big := wrapperspb.String(strings.Repeat("x", 3<<20))
				if err := conn.Invoke(ctx, "/test.Words/Upper", big, out); err != nil || len(out.Value) != 3<<20 {
					t.Fatal(len(out.Value), err)
				}
			})
			t.Run("status of the server", func(t *testing.T) {
				err := conn.Invoke(ctx, "/test.Words/Upper", wrapperspb.String("fail"), out)
				if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "not now: 100 %" {
					t.Error(err)
				}
				if err := conn.Invoke(ctx, "/test.Words/Nothing", in, out); status.Code(err) != codes.Unimplemented {
					t.Error(err)
				}
			})
			t.Run("refusals", func(t *testing.T) {
				for secret, want := range map[string]codes.Code{"none": codes.Unauthenticated, w.secrets["expired"]: codes.Unauthenticated, w.secrets["scopeless"]: codes.PermissionDenied} {
					if err := grpcClient(t, addr, clientCreds, secret).Invoke(ctx, "/test.Words/Upper", in, out); status.Code(err) != want {
						t.Errorf("%v, want %v", err, want)
					}
				}
			})
			t.Run("server stream", func(t *testing.T) {
				s, err := conn.NewStream(ctx, countdown, "/test.Words/Countdown")
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(s.SendMsg(in), s.CloseSend()); err != nil {
					t.Fatal(err)
				}
				for i := 5; i > 0; i-- {
					if err := s.RecvMsg(out); err != nil || len(out.Value) != i {
						t.Fatal(out.Value, err)
					}
				}
				if err := s.RecvMsg(out); !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			})
			t.Run("client stream", func(t *testing.T) {
				s, err := conn.NewStream(ctx, gather, "/test.Words/Gather")
				if err != nil {
					t.Fatal(err)
				}
				for _, word := range []string{"a", "b", "c"} {
					if err := s.SendMsg(wrapperspb.String(word)); err != nil {
						t.Fatal(err)
					}
				}
				if err := errors.Join(s.CloseSend(), s.RecvMsg(out)); err != nil || out.Value != "a,b,c" {
					t.Fatal(out.Value, err)
				}
			})
			t.Run("both at once", func(t *testing.T) {
				s, err := conn.NewStream(ctx, talk, "/test.Words/Talk")
				if err != nil {
					t.Fatal(err)
				}
				for i := range 20 { // each answer comes before the next question is asked
					if err := s.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
						t.Fatal(err)
					}
					if err := s.RecvMsg(out); err != nil || out.Value != fmt.Sprint("re: ", i) {
						t.Fatal(out.Value, err)
					}
				}
				if err := s.CloseSend(); err != nil {
					t.Fatal(err)
				}
				if err := s.RecvMsg(out); !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			})
			t.Run("cancellation", func(t *testing.T) {
				ctx, cancel := context.WithCancel(ctx)
				s, err := conn.NewStream(ctx, countdown, "/test.Words/Countdown")
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(s.SendMsg(wrapperspb.String("wait")), s.CloseSend(), s.RecvMsg(out)); err != nil {
					t.Fatal(err)
				}
				cancel()
				select {
				case <-cancelled:
				case <-time.After(patience):
					t.Fatal("the server was not told")
				}
			})
			t.Run("deadline", func(t *testing.T) {
				// A call may be over before it has reached the server, which then knows
				// nothing of it: the next one gets more time.
				for allowed, received := 300*time.Millisecond, 0; received == 0; allowed *= 2 {
					if err := ctx.Err(); err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithTimeout(ctx, allowed)
					defer cancel()
					s, err := conn.NewStream(ctx, countdown, "/test.Words/Countdown")
					if err == nil {
						err = errors.Join(s.SendMsg(wrapperspb.String("wait")), s.CloseSend())
					}
					for err == nil {
						if err = s.RecvMsg(out); err == nil {
							received++
						}
					}
					if status.Code(err) != codes.DeadlineExceeded {
						t.Fatal(err)
					}
				}
				select {
				case <-cancelled:
				case <-time.After(patience):
					t.Fatal("the server was not told")
				}
			})
		})
	}
}
