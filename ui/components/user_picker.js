// Who is shopping. Emits pick {user_id}; an empty user_id means someone new.

export default {
  template: `
    <section class="ac-people" aria-label="Who is shopping">
      <div class="ac-faces" role="group" aria-label="Toy users">
        <button v-for="person in people" :key="person.id" type="button" class="ac-person" :style="{'--hue': person.hue}"
                :aria-pressed="current.id === person.id ? 'true' : 'false'" :data-user="person.id" @click="pick(person.id)">
          <span class="ac-face" aria-hidden="true">{{ person.initials }}</span><span>{{ person.name }}</span>
        </button>
        <button type="button" class="ac-person someone-new" data-user="" :aria-pressed="isGuest ? 'true' : 'false'" @click="pick('')">
          <span class="ac-face" aria-hidden="true">+</span><span>Someone new</span>
        </button>
        <form class="ac-anyone" @submit.prevent="typed.trim() && pick(typed.trim())">
          <label class="ac-sr" for="any-user">Any user id</label>
          <input id="any-user" v-model="typed" maxlength="128" placeholder="any user id" autocomplete="off" spellcheck="false">
          <button type="submit">Go</button>
        </form>
      </div>
      <p class="ac-story" data-testid="story"><b>{{ current.name }}</b> {{ current.story }}</p>
    </section>`,
  props: { people: Array, current: Object },
  data() {
    return { typed: "" };
  },
  computed: {
    isGuest() {
      return this.current.id.startsWith("guest-");
    },
  },
  methods: {
    pick(userId) {
      this.$emit("pick", { user_id: userId });
      this.typed = "";
    },
  },
};
