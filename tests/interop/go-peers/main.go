// Peers on go-spiffe for `make interop`: what they say of whoever talks to
// them is what the scenarios look at. Each ends with its stdin.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

var (
	socket = flag.String("socket", "", "the Workload API, unix:///path")
	listen = flag.String("listen", "", "host:port")
	allow  = flag.String("allow", "", "the one SPIFFE ID that is let in")
	extra  = flag.String("tunnel-to", "", "tcp: where to pass bytes on, host:port; empty: back")
)

func main() {
	log.SetFlags(log.Lmicroseconds)
	flag.Parse()
	ctx := context.Background()
	if flag.Arg(0) == "fetch" {
		fetch(ctx)
		return
	}
	options := workloadapi.WithClientOptions(workloadapi.WithAddr(*socket))
	source, err := workloadapi.NewX509Source(ctx, options)
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	authorizer := tlsconfig.AuthorizeID(spiffeid.RequireFromString(*allow))
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	switch flag.Arg(0) {
	case "http":
		err = serveHTTP(source, authorizer)
	case "grpc":
		err = serveGRPC(source, authorizer)
	case "site":
		err = serveSite(source, authorizer)
	case "tcp":
		err = serveTCP(ctx, source, authorizer)
	default:
		err = errors.New("usage: peers -socket S -listen A -allow ID http|site|grpc|tcp, or -socket S fetch")
	}
	log.Fatal(err)
}

// What a backend has seen of a request.
type seen struct {
	Protocol string
	Peer     string
	Method   string
	Path     string
	Host     string
	Header   http.Header
	Bytes    int64
}

func serveHTTP(source *workloadapi.X509Source, authorizer tlsconfig.Authorizer) error {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			log.Printf("body: %v", err)
			return
		}
		id := "none"
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			if found, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0]); err == nil {
				id = found.String()
			}
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(seen{r.Proto, id, r.Method, r.URL.Path, r.Host, r.Header, count})
	})
	server := &http.Server{
		Addr:              *listen,
		Handler:           handler,
		TLSConfig:         tlsconfig.MTLSServerConfig(source, source, authorizer),
		ReadHeaderTimeout: 10 * time.Second,
	}
	return server.ListenAndServeTLS("", "")
}

// What a browser does with a site, and says of it in the end.
const page = `<!doctype html><title>interop</title><script>
const told = {};
async function run() {
  const form = new FormData();
  form.append("name", "value");
  form.append("file", new Blob([new Uint8Array(200000)]), "file.bin");
  told.upload = await (await fetch("/upload", {method: "POST", body: form})).text();
  told.events = await new Promise((done, failed) => {
    const events = new EventSource("/events"), seen = [];
    events.onmessage = event => {
      seen.push(event.data);
      if (seen.length === 3) { events.close(); done(seen.join()); }
    };
    events.onerror = () => failed("events");
  });
  told.socket = await new Promise((done, failed) => {
    const socket = new WebSocket("ws://" + location.host + "/socket"), seen = [];
    socket.onopen = () => socket.send("one");
    socket.onmessage = message => {
      seen.push(message.data);
      if (seen.length === 1) socket.send("x".repeat(70000));
      else { socket.close(); done(seen[0] + "," + seen[1].length); }
    };
    socket.onerror = () => failed("socket");
  });
}
run().catch(why => { told.failed = String(why); })
  .finally(() => fetch("/told", {method: "POST", body: JSON.stringify(told)}));
</script>`

func serveSite(source *workloadapi.X509Source, authorizer tlsconfig.Authorizer) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, page)
	})
	mux.HandleFunc("POST /upload", func(w http.ResponseWriter, r *http.Request) {
		file, _, err := r.FormFile("file")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		count, _ := io.Copy(io.Discard, file)
		fmt.Fprintf(w, "%s %d", r.FormValue("name"), count)
	})
	mux.HandleFunc("PUT /upload", func(w http.ResponseWriter, r *http.Request) {
		count, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %d", r.Proto, count)
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for number := 1; ; number++ {
			fmt.Fprintf(w, "data: %d\n\n", number)
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				log.Printf("events: %v", r.Context().Err())
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	mux.Handle("GET /socket", websocket.Handler(func(socket *websocket.Conn) {
		for {
			var message string
			if websocket.Message.Receive(socket, &message) != nil {
				return
			}
			websocket.Message.Send(socket, message)
		}
	}))
	mux.HandleFunc("POST /told", func(w http.ResponseWriter, r *http.Request) {
		told, _ := io.ReadAll(r.Body)
		log.Printf("told %s", told)
	})
	server := &http.Server{
		Addr:              *listen,
		Handler:           mux,
		TLSConfig:         tlsconfig.MTLSServerConfig(source, source, authorizer),
		ReadHeaderTimeout: 10 * time.Second,
	}
	return server.ListenAndServeTLS("", "")
}

func serveGRPC(source *workloadapi.X509Source, authorizer tlsconfig.Authorizer) error {
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	note := func(ctx context.Context) {
		if from, ok := peer.FromContext(ctx); ok {
			id, _ := grpccredentials.PeerIDFromPeer(from)
			log.Printf("call from %s", id)
		}
	}
	server := grpc.NewServer(
		grpc.Creds(grpccredentials.MTLSServerCredentials(source, source, authorizer)),
		grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			note(ctx)
			return next(ctx, request)
		}),
	)
	status := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, status)
	status.SetServingStatus("interop", grpc_health_v1.HealthCheckResponse_SERVING)
	return server.Serve(listener)
}

func serveTCP(ctx context.Context, source *workloadapi.X509Source, authorizer tlsconfig.Authorizer) error {
	mode := spiffetls.MTLSServerWithSource(authorizer, source)
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", *listen, mode)
	if err != nil {
		return err
	}
	for {
		accepted, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer accepted.Close()
			if *extra == "" {
				if _, err := io.Copy(accepted, accepted); err != nil {
					log.Printf("echo: %v", err)
				}
				return
			}
			other, err := net.Dial("tcp", *extra)
			if err != nil {
				log.Printf("%v", err)
				return
			}
			defer other.Close()
			go func() {
				io.Copy(other, accepted)
				other.(*net.TCPConn).CloseWrite()
			}()
			io.Copy(accepted, other)
		}()
	}
}

// Prints what a Workload API says: IDs, bundles, and whether each SVID
// verifies against its bundle, by go-spiffe's own verifier.
func fetch(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	x509, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(*socket))
	if err != nil {
		log.Fatal(err)
	}
	for _, svid := range x509.SVIDs {
		id, _, err := x509svid.Verify(svid.Certificates, x509.Bundles)
		if err != nil {
			log.Fatalf("%s: %v", svid.ID, err)
		}
		fmt.Printf("svid %s\n", id)
	}
	for _, bundle := range x509.Bundles.Bundles() {
		fmt.Printf("bundle %s %d\n", bundle.TrustDomain(), len(bundle.X509Authorities()))
	}
}
