// The user of the shop. Emits pick {user_id}; an empty user_id is a new user.

export default {
  template: `
    <section class="ac-users" aria-label="User">
      <div class="ac-user-list" role="group" aria-label="Demo users">
        <button v-for="user in users" :key="user.id" type="button" class="ac-user" :style="{'--hue': user.hue}"
                :aria-pressed="current.id === user.id ? 'true' : 'false'" :data-user="user.id" @click="pick(user.id)">
          <span class="ac-avatar" aria-hidden="true">{{ user.initials }}</span><span>{{ user.name }}</span>
        </button>
        <button type="button" class="ac-user new-user" data-user="" :aria-pressed="isGuest ? 'true' : 'false'" @click="pick('')">
          <span class="ac-avatar" aria-hidden="true">+</span><span>New user</span>
        </button>
        <form class="ac-any-user" @submit.prevent="typed.trim() && pick(typed.trim())">
          <label class="ac-sr" for="any-user">Any user id</label>
          <input id="any-user" v-model="typed" maxlength="128" placeholder="any user id" autocomplete="off" spellcheck="false">
          <button type="submit">Go</button>
        </form>
      </div>
      <p class="ac-story" data-testid="story"><b>{{ current.name }}</b> {{ current.story }}</p>
    </section>`,
  props: { users: Array, current: Object },
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
